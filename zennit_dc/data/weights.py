'''Files of weights.'''
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from .images import require_local


# where checkpoints have their state dict, and what wrappers of a model write before its names
NESTS = ('state_dict', 'model_state_dict', 'model')
PREFIXES = ('module.', '_orig_mod.')


def load_weights(model, name, path):
    '''Load a file of weights into a model. It may hold nothing but tensors and plain containers.'''
    state = read_state(path)
    own = model.state_dict()
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
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
    found = [
        f'{len(keys)} of {len(all)} {what} ({", ".join(keys[:3])}{", ..." if len(keys) > 3 else ""})'
        for keys, all, what in (
            (missing, own, 'tensors are missing'), (unexpected, state, 'are unexpected'),
            (other, own, 'are of another shape')
        ) if keys
    ]
    if found or reason:
        raise ValueError(f'{path} cannot be loaded into {name}: {"; ".join(found) or reason}') from reason


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
