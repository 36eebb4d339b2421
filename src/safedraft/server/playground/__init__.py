"""The page at ``/playground``, which shows the decision of every token. In reading order:

``bins`` the bins of a trace; ``drawing`` replies in HTML; ``turn`` a running request; ``snippet`` a
request as code; ``controls`` sliders and their values; ``layout`` the components; ``page_gate`` the
allowed addresses; ``page`` the actions of the buttons.
"""
