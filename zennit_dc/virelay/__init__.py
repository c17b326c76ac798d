'''Attributions of a data set, their analysis by CoRelAy, and the project with which ViRelAy shows both.'''
from .analyses import analyze
from .attributions import attribute
from .projects import project


__all__ = ['analyze', 'attribute', 'project']
