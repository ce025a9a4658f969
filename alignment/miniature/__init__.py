"""A closed world whose truth is known: it gives the data that a small model learns from, and judges every answer.

The way through the room: ``town`` (who lives there) → ``skills`` (what can be asked) → ``world`` (what a dialogue
asks) → ``answers`` (from exact to off-topic) → ``gold`` (what an answer is worth) → ``corpus`` (rows to train on).
"""
