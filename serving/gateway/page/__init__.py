"""The page at `/`: what serves and why, whether it is better than what was there, what waits, what was decided.

    facts.py     what the registry and the decision records say
    figures.py   what is counted by day, from the gateway's own counts
    charts.py    the same as SVG
    access.py    who may look and who may act
    page.html    the page; login.html

It keeps nothing: each look asks anew.
"""
