'''Canonizers that change nothing in a model, but how it is split.'''
import copy
import weakref

from zennit.canonizers import Canonizer


class SplitOption(Canonizer):
    '''Base class of the canonizers which, passed to a composite for split pairs, choose a split form for functions that
    have no exact one.'''
    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.chosen = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, root_module):
        '''The option that is chosen for a model, or None.

        Parameters
        ----------
        root_module : :py:class:`torch.nn.Module` or None
            The model.

        Returns
        -------
        :py:class:`SplitOption` or None
            The canonizer as it was passed to the composite.
        '''
        return None if root_module is None else cls.chosen.get(root_module)

    def apply(self, root_module):
        '''Choose this option for a model.

        Parameters
        ----------
        root_module : :py:class:`torch.nn.Module`
            The model, as it is passed to the composite.

        Returns
        -------
        list
            The one applied instance.

        Raises
        ------
        RuntimeError
            If the option is chosen for this model already.
        '''
        instance = copy.copy(self)
        instance.register(self, root_module)
        return [instance]

    def register(self, option, root_module):
        '''Choose an option for a model until this instance is removed.'''
        if root_module in self.chosen:
            raise RuntimeError(f'{type(self).__name__} is applied to this model already')
        self.root = root_module
        self.chosen[root_module] = option

    def remove(self):
        '''Choose it no longer.'''
        self.chosen.pop(self.root, None)
