"""What can be asked in the miniature world: one class per kind of question.

A skill draws questions, finds them again in a text, says right and wrong things about them, and reads
what an answer claims. Answers and gold scores are built on these alone.
"""
