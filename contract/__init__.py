"""What the parts say to each other, stated once. Imports nothing of ours; every other package may import it.

names      tags, aliases, stages, experiments, artifact paths, environment variables
metrics    the registry of metrics: what each is computed from, and which way is better
manifest   the sha256 of each of a version's files: write, read, compare
fetching   a version's files from the store: those that its manifest lists, as at training
messages   what goes over the engine's socket and the evaluator's, and PROTOCOL
versions   what a version's folder tells about the code in it, and which protocols this release serves
errors     what a person sees when a command cannot go on, with its exit code
monitoring what the trainer leaves for whoever watches production
tracking   connecting to the tracking server, and creating what must not be there twice
forms      YAML files that people write, checked against a form
files      replacing a file whole, a file lock, a free port
steering   the loop's rounds, and what people say to the loop
lease      one at a time for a model, wherever it runs: a lock that is kept in the tracking server
logs       how the long-running parts log
settings   defaults of the libraries that every part wants
"""
