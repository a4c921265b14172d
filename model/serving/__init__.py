"""HTTP server for completions, compatible with OpenAI's clients.

Start with `app.py`: `requests.py` parses a request, `scheduler.py` generates its sequences in one batch with others,
`responses.py` encodes the result. `server.py` owns the socket and the shutdown, `timeouts.py` the slow and
half-closed clients, `hosts.py` the names of the server.
"""
