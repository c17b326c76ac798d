'''The engine: the split pair, the pass it belongs to, and the building blocks of which forms are made.'''
