"""HTTP server for completions and chats, compatible with OpenAI's clients.

Start with `app.py`: `requests.py` parses a request, `scheduler.py` generates its sequences in one batch with others,
`responses.py` encodes the result. `chat.py` turns a chat into a completion, `chat_responses.py` its result into a chat.
`model_info.py` describes the run and puts the web page together: the files of `page/`, in one, after the stylesheet of
reports. `server.py` owns the socket and the shutdown, `timeouts.py` the slow and half-closed clients, `access.py` and
`hosts.py` the keys and the names of the server.
"""
