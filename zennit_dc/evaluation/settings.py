'''What is compared in an evaluation: methods with their parameters.'''
import itertools
from typing import NamedTuple

from ..methods import CONTROLS, METHODS, RECENTERINGS, recentering_named
from ..rules import Balanced


CRITERIA = {
    'localisation': {'attribution_localisation': True, 'pointing_game': True},
    'faithfulness': {'pixel_flipping_5': True, 'pixel_flipping_20': True},
}
'''The metrics by which settings are ranked, and whether larger is better.'''
SELECTION = tuple(metric for metrics in CRITERIA.values() for metric in metrics)
ABLATIONS = {
    'alpha': (.5, .45, .4, .35, .3, 0., Balanced()), 'pooling': ('wta', 'convex'),
    'recentering': RECENTERINGS, 'against': ('none', 'others', 'likely')
}
'''The values of the paper's ablation studies (appendix C) by their parameters, the shift that follows gradients, and
the classes to explain a class against.'''


class Setting(NamedTuple):
    '''A method with its parameters.

    Parameters
    ----------
    method : str
        The method's name in :py:data:`zennit_dc.methods.METHODS`.
    parameters : tuple[tuple[str, object], ...]
        The names and values of its parameters. A layer of None is the input, ``recentering`` is a name as
        :py:func:`zennit_dc.methods.recentering_named` takes it, and ``against``, which is no parameter of the method
        itself, says against which classes the class is explained, see :py:func:`zennit_dc.methods.saliency_map`.
    absolute : bool
        Whether the map's absolute value is evaluated.
    '''
    method: str
    parameters: tuple = ()
    absolute: bool = False

    @property
    def title(self):
        '''The method's name for people.'''
        return METHODS[self.method].title

    @property
    def name(self):
        '''The parameters for people, by which results are told apart.'''
        values = [f'{name} {"input" if value is None else value}' for name, value in self.parameters]
        return ', '.join([*values, *(['abs'] if self.absolute else [])])

    @property
    def arguments(self):
        '''The parameters as :py:func:`zennit_dc.methods.attributor` takes them.'''
        arguments = {name: value for name, value in self.parameters if name != 'against'}
        if 'recentering' in arguments:
            arguments['recentering'] = recentering_named(arguments['recentering'])
        return arguments

    @property
    def against(self):
        '''The classes to explain the class against.'''
        return dict(self.parameters).get('against', 'none')

    def replaced(self, **values):
        '''The setting with other values of parameters, those that it does not have being added.'''
        return self._replace(parameters=tuple({**dict(self.parameters), **values}.items()))


def grid(methods, absolute=(False, True), **choices):
    '''All settings of methods.

    Parameters
    ----------
    methods : sequence of str
        The methods' names.
    absolute : sequence of bool, optional
        Whether to evaluate the maps as they are, their absolute values, or both.
    **choices
        For parameters their values. A method takes those parameters that it has; of the layers, all but None, the
        input, if it needs a layer; and of the streams, those that it has. All methods but controls, and those that
        explain the loss, take ``against``.

    Returns
    -------
    list[Setting]
        The settings, by method.

    Raises
    ------
    ValueError
        If there is no such method; if there are no layers for a method that needs one, or streams, but none of a
        method's own; or if no method has some parameter or stream.
    '''
    require_known(methods, choices)
    settings = []
    for method in methods:
        each = METHODS[method]
        taken = parameter_names(method)
        own = {name: list(dict.fromkeys(values)) for name, values in choices.items() if values and name in taken}
        if 'stream' in own:
            own['stream'] = [stream for stream in own['stream'] if stream in each.streams]
            if not own['stream']:
                raise ValueError(f'{each.title} needs one of the streams {", ".join(each.streams)}')
        if each.needs_layer:
            own['layer'] = [layer for layer in own.get('layer', ()) if layer is not None]
            if not own['layer']:
                raise ValueError(f'{each.title} needs layers')
        for values in itertools.product(*own.values()):
            settings += [Setting(method, tuple(zip(own, values)), absolute=choice) for choice in absolute]
    return settings


def require_known(methods, choices):
    '''Raise a ValueError if there is no such method, or if no method has some parameter or stream.'''
    for method in methods:
        if method not in METHODS:
            raise ValueError(f'there is no method {method!r}, but {", ".join(METHODS)}')
    chosen = [METHODS[method] for method in methods]
    for name, values in choices.items():
        if values and not any(name in parameter_names(method) for method in methods):
            raise ValueError(f'none of the methods has a parameter {name!r}')
    for stream in choices.get('stream', ()):
        if not any(stream in each.streams for each in chosen):
            raise ValueError(f'none of the methods has a stream {stream!r}')


def parameter_names(method):
    '''The names of the parameters that a setting of a method may have.'''
    chosen = METHODS[method]
    return (*chosen.parameters, *(() if method in CONTROLS or chosen.explains_loss else ('against',)))


def ablation(settings, *parameters):
    '''Settings with all values of the paper's ablation studies in place of their own (appendix C).

    Parameters
    ----------
    settings : list[Setting]
        The settings. Those that depend on none of the parameters are left out.
    *parameters : str
        The names of parameters in :py:data:`ABLATIONS`.

    Returns
    -------
    list[Setting]
        For each of the settings those with all combinations of the values, each once.

    Raises
    ------
    ValueError
        If there is no ablation study of a parameter.
    '''
    for name in parameters:
        if name not in ABLATIONS:
            raise ValueError(f'there is no ablation study of {name!r}, but of {", ".join(ABLATIONS)}')
    changed = []
    for setting in settings:
        own = [name for name in parameters if name in parameter_names(setting.method)]
        if 'recentering' in own and not recentered(setting):
            own.remove('recentering')
        if own:
            for values in itertools.product(*(ABLATIONS[name] for name in own)):
                changed.append(setting.replaced(**dict(zip(own, values))))
    return list(dict.fromkeys(changed))


def recentered(setting):
    '''Whether a map depends on the forward stabilisation: no sensitivity does (theorem 6), but the relevance of streams
    and the activation of one do.'''
    return setting.method == 'splitlrp' or (
        setting.method == 'splitcam' and dict(setting.parameters).get('stream', 'g') in ('+g', '-g', '+h', '-h')
    )
