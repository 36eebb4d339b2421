"""An OpenAI-compatible server of a pair, on any engine except vLLM, which has its own.

The modules in reading order: ``settings`` (what the operator allows), ``wire`` (the JSON objects
that are sent), ``requests`` (the bodies that are accepted), ``errors``, ``scheduler`` (which reply
is decoded when), ``replies`` (tokens to responses), ``service`` (requests to jobs), ``app`` (the
routes), ``gate`` (the middleware before them), ``metrics``, ``run`` (the process) and
``playground`` (the web page).
"""
