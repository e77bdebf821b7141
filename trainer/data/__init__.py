"""Data: from source code and rows to the examples that a run trains on and is judged by.

    sources  →  filters  →  secrets  →  python, other_languages  →  kinds   →  duplicates  →  prepare
    files       generated   redacted    the functions of a file     examples    removed        split, written
    and rows    or vendored

Everything streams from one file on disk to the next; memory holds about 100 bytes for each example.
"""
