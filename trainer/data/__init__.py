"""Data: from source code and rows to the examples that a run trains on and is judged by.

    sources → reading                                   → prepare                         → writing
    files     filters, secrets, languages and places:     duplicates, twins, file_twins     prompts: context, neighbours
    and rows  what is kept of them, and where one may      and split: what becomes an
              ask                                          example, and on which side

Everything streams from one file on disk to the next; memory holds about 100 bytes for each place in a file, or row.
"""
