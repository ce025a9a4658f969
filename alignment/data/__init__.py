"""From a recipe to a dataset: every source row is read, told apart, and accounted for in a ledger.

``recipe`` says what is wanted, ``readers``, ``hub`` and ``world`` deliver raw rows with their place,
``formats`` turn them into chat types, ``checks`` keep or refuse them, ``ledger`` and ``store`` write
what happened and what came out, and ``build`` puts these in order.
"""
