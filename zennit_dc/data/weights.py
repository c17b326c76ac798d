'''Files of weights.'''
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from .files import require_local


NESTS = ('state_dict', 'model_state_dict', 'model')  # where checkpoints have their state dict


def load_weights(model, name, path):
    '''Load a file of weights into a model.

    Where all names in the file begin with the name of a module in which the model was, it is left out: ``module.`` of
    data parallel training, ``_orig_mod.`` of compiled models, ``model.`` or ``net.`` of a module of Lightning.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    name : str
        Its name in errors.
    path : str or path
        The file, which may hold nothing but tensors and plain containers.

    Raises
    ------
    ValueError
        If the file cannot be read, or does not have exactly the tensors of the model.
    '''
    state = read_state(path)
    own = model.state_dict()
    prefix = prefix_of(state, own)
    others = [key for key in state if not key.startswith(prefix)]
    if not others:
        consume_prefix_in_state_dict_if_present(state, prefix)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
        reason = None
    except RuntimeError as error:  # shapes, which do not tell what is missing
        missing, unexpected = sorted({*own} - {*state}), sorted({*state} - {*own})
        reason = error
    other = [
        f'{key} {tuple(getattr(state[key], "shape", ()))}, not {tuple(own[key].shape)}' for key in own
        if key in state and isinstance(own[key], torch.Tensor) and own[key].shape != getattr(state[key], 'shape', None)
    ]
    kinds = [f'{key} {state[key].dtype}, not {tensor.dtype}' for key, tensor in own.items()
             if isinstance(state.get(key), torch.Tensor) and is_other_kind(state[key].dtype, tensor.dtype)]
    found = [
        f'{len(keys)} of {len(all)} {what} ({", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""})'
        for keys, all, what in (
            (missing, own, 'tensors are missing'), (unexpected, state, 'are unexpected'),
            (other, own, 'are of another shape'), (kinds, own, 'are of another kind')
        ) if keys
    ]
    if found or reason:
        raise ValueError(
            f'{path} cannot be loaded into {name}: {"; ".join(found) or reason}{told(prefix, others)}'
        ) from reason


def prefix_of(state, own):
    '''The prefix, such as ``'module.'``, that names of a state dict have before those of a model. Of several
    prefixes, it is that of the most names. It is empty if names are the model's as they stand.'''
    counts = Counter(
        key[:end] for key in state for end in (0, *(index + 1 for index, each in enumerate(key) if each == '.'))
        if key[end:] in own
    )
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default='')


def is_other_kind(dtype, own):
    '''Whether a file's numbers are of another kind than a model's: integers in place of real numbers, or complex
    numbers in place of others.'''
    return (own.is_floating_point and not dtype.is_floating_point) or (dtype.is_complex and not own.is_complex)


def told(prefix, others):
    '''What an error says of a prefix, which only some names may have.'''
    if not prefix:
        return ''
    if not others:
        return f' (without the prefix {prefix!r} of all names)'
    return (
        f' (the prefix {prefix!r} is left out where all names have it, but {len(others)} have not:'
        f' {", ".join(others[:3])}{", ..." if len(others) > 3 else ""}; save the others alone)'
    )


def read_state(path):
    '''The state dict of a file, or of the checkpoint that it holds.'''
    require_local(path)
    if not Path(path).is_file():
        raise ValueError(f'there is no file of weights {path}')
    if not Path(path).stat().st_size:
        raise ValueError(f'{path} cannot be loaded as weights: the file is empty')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # what is wrong with a file can come from any of pickle, zipfile, PyTorch ...
        reason = str(error).strip().partition('\n')[0].partition('. ')[0][:120]
        raise ValueError(
            f'{path} cannot be loaded as weights, as it is truncated, of another kind, or holds more than tensors: what'
            f' is needed is torch.save(model.state_dict(), FILE) ({type(error).__name__}: {reason})'
        ) from error
    while isinstance(state, dict) and (nest := next((k for k in NESTS if isinstance(state.get(k), dict)), None)):
        state = state[nest]
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not any(isinstance(each, torch.Tensor) for each in state.values()):
        keys = f' of {", ".join(map(str, [*state][:5]))}' if isinstance(state, dict) else ''
        kind = type(state).__name__
        raise ValueError(f'{path} cannot be loaded as weights: it holds a {kind}{keys}, and no state dict')
    return state


@contextmanager
def diagnosed(model):
    '''A context in which the error of a map that is not finite says whether the model's weights are the reason.'''
    try:
        yield
    except FloatingPointError as error:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise FloatingPointError(
                f'the map is not finite, as {len(broken)} of the model\'s {len(tensors)} tensors are not, the first of'
                f' them {broken[0]}: load other weights, or take a --dtype that can hold them'
            ) from error
        raise FloatingPointError(f'{error} (the weights are finite, so that they are not the reason)') from error
