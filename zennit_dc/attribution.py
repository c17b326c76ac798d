'''Attributors for maps that are no gradients, and what enters at the output for a class.'''
import torch
from zennit.attribution import Attributor


class LayerCAM(Attributor):
    '''LayerCAM in the form of the paper's equation 5: the product of a layer's gradient and its activation, summed over
    channels and rectified. (The original [1]_ rectifies the gradient as well.)

    The attribution is the map's bilinear upsampling to the input's size, divided evenly among the input's channels, as
    that of :py:class:`~zennit_dc.SplitCAM` is.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    layer : str
        The name of the module at whose output of shape (batch, channels, height, width) the map is computed.
    attr_output : :py:class:`torch.Tensor` or callable, optional
        The default relevance of the output, as for Zennit's attributors.

    Raises
    ------
    ValueError
        If the model has no such module, or if its output is not one tensor with channels, height and width.

    References
    ----------
    .. [1] P.-T. Jiang, C.-B. Zhang, Q. Hou, M.-M. Cheng, and Y. Wei: "LayerCAM: Exploring Hierarchical Class Activation
           Maps for Localization," IEEE Transactions on Image Processing, vol. 30, 2021.
    '''
    def __init__(self, model, layer, attr_output=None):
        super().__init__(model, attr_output=attr_output)
        if not layer or layer not in dict(model.named_modules()):
            raise ValueError(f'the model has no module named {layer!r}')
        self.layer = layer

    def forward(self, input, attr_output_fn):
        '''Compute the map.

        Parameters
        ----------
        input : :py:class:`torch.Tensor`
            The input of shape (batch, channels, height, width).
        attr_output_fn : callable
            The relevance of the output as a function of the output.

        Returns
        -------
        output : :py:class:`torch.Tensor`
            The model's output.
        attribution : :py:class:`torch.Tensor`
            The attribution in the input's shape.
        '''
        activations = []

        def record(module, args, output):
            activations.append(output)
            return output.clone() if isinstance(output, torch.Tensor) else output  # may be overwritten in place

        handle = self.model.get_submodule(self.layer).register_forward_hook(record)
        try:
            with torch.enable_grad():
                output = self.model(input.detach().requires_grad_())
        finally:
            handle.remove()
        if len(activations) != 1 or not isinstance(activations[0], torch.Tensor) or activations[0].ndim != 4:
            raise ValueError(f'layer {self.layer!r} does not give one output with channels, height and width')
        activation, = activations
        gradient, = torch.autograd.grad(output, activation, attr_output_fn(output))
        saliency = (gradient * activation).sum(1, keepdim=True).relu().detach()
        upsampled = torch.nn.functional.interpolate(saliency, input.shape[2:], mode='bilinear')
        return output.detach(), (upsampled / input.shape[1]).expand(input.shape)


def require_scores(output):
    '''Return a model's output if it has the shape (batch, classes), else raise a ValueError.'''
    if not isinstance(output, torch.Tensor):
        raise ValueError(f'the model\'s output must be a tensor of shape (batch, classes), not {type(output).__name__}')
    if output.ndim != 2:
        raise ValueError(f'the model\'s output must have the shape (batch, classes), not {tuple(output.shape)}')
    return output


def class_relevance(target=None):
    '''What enters at the output to explain a class: one for this class and zero for all others.

    Parameters
    ----------
    target : int, :py:class:`torch.Tensor` or None, optional
        The class's index, or one for each sample, of shape (batch,). Default is the class with the largest output.

    Returns
    -------
    callable
        A function of the output of shape (batch, classes), as Zennit's attributors take it for ``attr_output``. It
        raises an :py:exc:`ValueError` for a class that the output does not have.
    '''
    def relevance(output):
        require_scores(output)
        classes = output.detach().argmax(1) if target is None else torch.as_tensor(target, device=output.device)
        if classes.min() < 0 or classes.max() >= output.shape[1]:
            raise ValueError(
                f'there is no class {int(classes.min() if classes.min() < 0 else classes.max())}, but those from 0 to'
                f' {output.shape[1] - 1}'
            )
        return torch.zeros_like(output).scatter_(1, classes.expand(len(output))[:, None], 1.)
    return relevance
