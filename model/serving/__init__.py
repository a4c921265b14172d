"""HTTP server for completions and chats, compatible with OpenAI's clients.

Start with `app.py`: `requests.py` parses a request, `scheduler.py` generates its sequences in one batch with others,
`responses.py` encodes the result. `chat.py` turns a chat into a completion, `chat_responses.py` its result into a chat.
`model_info.py` describes the run, and builds the web page from the files of `page/` and the stylesheet of reports.
`server.py` opens the socket and shuts down, `timeouts.py` handles slow and half-closed clients, `access.py` and
`hosts.py` check keys and host names.
"""
