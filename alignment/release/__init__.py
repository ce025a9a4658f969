"""What leaves the house: a model as a folder that anyone can load, with its descent, its licences and its checksums.

``descent`` walks the lineage, ``provenance`` reads from it whose terms and licences a model is under, ``licences`` and
``gemma_terms`` say what follows, ``weights``, ``folder`` and ``card`` write, ``proof`` loads what was written, and
``hub`` uploads it where that is asked for.
"""
