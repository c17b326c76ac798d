'''What the metrics ask of models, images, maps and masks.'''
import numpy as np
import torch


def finite_maps(maps, shape):
    '''Maps of a shape (batch, height, width) as a float64 array, or an error that says what is wrong with them.'''
    require_shape('maps', maps, shape)
    if len(shape) != 3:
        raise ValueError(f'the maps must have the shape (batch, height, width), not {tuple(shape)}')
    maps = maps.detach().cpu().double()
    if not torch.isfinite(maps).all():
        raise FloatingPointError('a map is not finite: check the input and the weights, or use a higher precision')
    return maps.numpy()


def filled_masks(masks):
    '''Masks as a bool array, or an error that says what is wrong with them.'''
    masks = masks.detach().cpu().numpy()
    if masks.dtype != bool:
        raise ValueError(f'the masks must be of type bool, not {masks.dtype}')
    if not masks.any((1, 2)).all():
        raise ValueError(f'the masks of the images {np.flatnonzero(~masks.any((1, 2))).tolist()} are empty')
    return masks


def require_images(inputs, targets):
    '''Raise a ValueError if the images or classes have another shape.'''
    if inputs.ndim != 4 or not inputs.is_floating_point() or not inputs.numel():
        raise ValueError(
            'the inputs must be floating point numbers of shape (batch, channels, height, width), not'
            f' {tuple(inputs.shape)} of type {inputs.dtype}'
        )
    require_shape('targets', torch.as_tensor(targets), inputs.shape[:1])


def require_shape(name, values, shape):
    '''Raise a ValueError if values have another shape.'''
    if tuple(values.shape) != tuple(shape):
        raise ValueError(f'the {name} must have the shape {tuple(shape)}, not {tuple(values.shape)}')


def require_positive(**numbers):
    '''Raise a ValueError if one of the numbers is not positive.'''
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f'{name} must be positive, not {number}')
