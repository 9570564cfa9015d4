"""Hosts behind a server: our towers inside vLLM, the command that starts it, and questions to any server of OpenAI's interface.

In: a host's folder, or a server's address. Out: a running server; answers, their cost under load. `plugin` is what vLLM
calls, `native` what it builds in its own classes, `launch` starts it, `endpoint` asks. It knows `util` to `hosts`, and `vqa`.
"""
