"""What the trainer leaves for whoever watches production: a sample of its code, and where all of it was from.

A run of the trainer has both as artifacts; `services/monitor` compares production with them.
"""

SAMPLE = "data/sample.parquet"  # code before the cursor in examples to train and to judge on: trainer/data/sample.py
SOURCES = "data/sources.json"  # [{"source": as configured, "repository": …, "commit": … or null}]
CODE = "code"  # the sample's column
LEAST_CODE, LONGEST_CODE = 40, 1000  # characters


def code_before(prefix: str) -> str:
    """What is compared of the code before a cursor: whole lines at its end; empty where that is too little to tell."""
    code = prefix[-LONGEST_CODE:]
    if len(prefix) > LONGEST_CODE:
        code = code.partition("\n")[2] or code
    return code if len(code.strip()) >= LEAST_CODE else ""
