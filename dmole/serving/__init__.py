"""An OpenAI-compatible server for a finished run: ``dmole serve``.

Needs the extra ``serve``. Importing this package imports neither torch nor FastAPI.
"""
