'''What the results of a run depend on, by which it is told from others.'''
import hashlib
import inspect
import types
from collections.abc import Mapping
from functools import partial
from numbers import Integral, Real

import torch


def description(classifier, images, device, dtype, seed):
    '''What the results of a run depend on, whatever its method is, as far as JSON can tell.'''
    return {
        'model': classifier.name, 'weights': fingerprint(classifier.model),
        'preprocessing': ' '.join(repr(classifier.preprocessing).split()), 'images': images.fingerprint(),
        'device': device.type, 'dtype': str(dtype).removeprefix('torch.'), 'seed': seed
    }


def fingerprint(model):
    '''A hash of a model's parameters and buffers.'''
    return fingerprint_of(model.state_dict())


def fingerprint_of(tensors):
    '''A hash of tensors by their names.'''
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}'.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def as_json(value):
    '''A parameter as JSON can tell it. An object is its type with the parameters that it was made with.'''
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType, partial, torch.nn.Module)):
        raise ValueError(f'{value!r} cannot be stored with the attributions, by which an interrupted run is resumed')
    names = [name for name in inspect.signature(type(value)).parameters if hasattr(value, name)]
    return [type(value).__name__, {name: as_json(getattr(value, name)) for name in names}]
