'''Random programs of torch functions, and the properties that the maps of each must have.

``programs`` has what a program is, ``families`` the operations that it is made of, ``interpreter`` the paper's two
streams carried through it literally, ``checks`` the properties, and ``campaign`` runs many of them. A program is
reproduced by its seed: ``python -m tests.fuzzing --graphs 1 --first-seed 17 --show``.
'''
