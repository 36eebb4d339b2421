"""The page at ``/playground``: the pair at work, token by token. In reading order:

``bins`` the switch, seen from outside; ``drawing`` replies in HTML; ``turn`` a request on its way;
``snippet`` a request as code; ``controls`` what is set; ``layout`` what stands where; ``door`` the
few addresses that it needs; ``page`` what its buttons do.
"""
