'''Layers as places in the image: whether a layer's output has spatial axes, and maps of it in the input's size.'''
import torch


def require_spatial(name, shape, input_shape, channels=None):
    '''Raise a ValueError if a layer's output has no spatial axes that correspond to the input's.

    Parameters
    ----------
    name : str
        The layer, as it is called in the message.
    shape, input_shape : tuple of int
        The shape of its output, and the input's, (batch, channels, height, width) or the like.
    channels : int, optional
        The index of the output's axis of channels, if it is known.
    '''
    what = f'the output of {name} has the shape {tuple(shape)}'
    if len(shape) != len(input_shape) or len(shape) < 3 or shape[0] != input_shape[0]:
        raise ValueError(
            f'{what}, without spatial axes as the input of shape {tuple(input_shape)} has them: choose a layer'
            ' before the spatial axes are reduced'
        )
    size = input_shape[2:]
    unclear = len(size) == 2 and (distorted(shape[2:], size) or not distorted(shape[1:-1], size))
    if unclear if channels is None else channels != 1:
        raise ValueError(
            f'{what}, of which the second axis is not the channels: choose a layer whose output is ordered as the'
            ' input, with spatial axes last'
        )


def distorted(size, input_size):
    '''Whether spatial axes are so differently long from the input's that one of them is likely to be none.'''
    strides = [of_input / of_output for of_output, of_input in zip(size, input_size)]
    return max(strides) > 2 * min(strides)


def spread(saliency, input):
    '''The attribution of a map: its linear upsampling to the input's size, divided evenly among the channels.

    Parameters
    ----------
    saliency : :py:class:`torch.Tensor`
        The map of shape (batch, 1, height, width), or for another number of spatial axes, at any resolution.
    input : :py:class:`torch.Tensor`
        The input of shape (batch, channels, height, width).

    Returns
    -------
    :py:class:`torch.Tensor`
        The attribution in the input's shape.
    '''
    size, channels = input.shape[2:], input.shape[1]
    mode = {1: 'linear', 2: 'bilinear', 3: 'trilinear'}[len(size)]
    upsampled = torch.nn.functional.interpolate(saliency, size, mode=mode, align_corners=False)
    return (upsampled / channels).expand(input.shape)
