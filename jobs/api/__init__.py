"""The HTTP interface of the online endpoint: OpenAI's Videos API, as its clients speak it."""
