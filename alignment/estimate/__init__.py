"""What a run would take, on paper: memory of every GPU and bytes between them. Numbers in, numbers out; no torch.

``arithmetic.py`` counts parameters and what a layer keeps for its backward pass, ``memory.py`` adds up the phases of a
step, ``roles.py`` those of reinforcement learning and ``distillation.py`` those of distillation, ``communication.py``
what passes between GPUs, ``hardware.py`` says what GPUs there are, and ``jobs.py`` puts a stage together.
"""
