"""`trainer try`: a version and its base model side by side, on code of your own.

command     what the command does
cursor      where to complete: a place in a file, or in a text; and the prompt that is made of it
models      the models, loaded, and what they answer
terminal    answers side by side, and a conversation
web         the same as a page of one's own machine (trainer/pages/try.html)
"""
