"""An OpenAI-compatible server on the Transformers engine, in reading order:

``settings`` what the operator allows; ``errors`` what a client is told; ``requests`` what a client
may ask; ``scheduler`` who decodes when; ``replies`` tokens in OpenAI's own types; ``app`` the
routes; ``gate`` what stands before them; ``metrics``; ``run`` the process; ``playground`` the page.
"""
