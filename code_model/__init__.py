"""The PyFunc model, and all that is logged as code with a version; imports nothing else of ours.

pyfunc         CodeGenerationModel: what MLflow loads, and `predict`
inputs         the forms in which `predict` takes prompts
params         generation parameters, and what each may be
weights        from a folder to a model in memory
text           between texts and tokens; fim: a gap in the markers that the model knows
engine         the queue, and the one thread that computes; decoding: many completions in one batch
whole_batch    completions by transformers' `generate`
threads        how many threads compute, beside neighbours
engine_server  the engine's socket, on which the gateway reads growing completions (messages)
event_loop     the event loop of `mlflow models serve`, with threads enough
"""
