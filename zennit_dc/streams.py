'''What is read off the streams: which gradients enter at the output, and which map they make at input or layer.'''
import torch
from torch import Tensor


class Readout:
    '''What enters at the output, and the map that it makes. This one is the gradient of the difference, which is the
    original network's.'''
    name = 'Gradient'
    reads_sum = False  # whether the map is also one of the sum's gradient
    sums = False  # whether the map at a layer is also one of the sum's value
    advice = 'check the input and the weights'
    vanishes = ''  # what may be the reason for a map of zeros

    def __init__(self) -> None:
        self.saliency = None

    def seed(self, gradient: Tensor, sum_dtype: torch.dtype, damping: float) -> tuple[Tensor, Tensor]:
        '''The gradients of the output's difference and sum.

        Parameters
        ----------
        gradient : :py:class:`torch.Tensor`
            The gradient, or relevance, at the model's output.
        sum_dtype : :py:class:`torch.dtype`
            The dtype of the sum.
        damping : float
            The factor of the sum's gradient, :math:`1 - 2 \\alpha^{(L)}`.

        Returns
        -------
        tuple of :py:class:`torch.Tensor`
            The gradients of the difference and of the sum.
        '''
        return gradient, torch.zeros_like(gradient, dtype=sum_dtype)

    def combine(self, gradient: Tensor, sum_gradient: Tensor) -> Tensor:
        '''The map per entry, from the gradients of the difference and the sum.'''
        return gradient

    def at_layer(self, gradient: Tensor, sum_gradient: Tensor, difference: Tensor, stream_sum: Tensor) -> Tensor:
        '''The map of a layer's output, reduced over channels: their sum.'''
        return self.combine(gradient, sum_gradient).sum(1)


class Sensitivity(Readout):
    '''The sensitivity of a stream (section 3.3), with :math:`\\delta^+ = \\partial g / \\partial d + \\partial g /
    \\partial s`, :math:`\\delta^- = \\partial g / \\partial s - \\partial g / \\partial d` and
    :math:`\\delta = \\partial g / \\partial d` (equation 46), and the same for h.

    Parameters
    ----------
    stream : {'+g', '-g', 'g', '+h', '-h', 'h'}
        Whether the output's g or h is explained, and the sensitivity to the positive or negative stream, or to their
        difference.
    '''
    name = 'SplitGrad'
    advice = 'try a larger alpha or an input in float64'
    streams = ('+g', '-g', 'g', '+h', '-h', 'h')

    def __init__(self, stream: str):
        super().__init__()
        self.sign, self.output = stream[:-1], stream[-1]
        self.reads_sum = self.sign != ''

    def seed(self, gradient: Tensor, sum_dtype: torch.dtype, damping: float) -> tuple[Tensor, Tensor]:
        '''The gradients of :math:`g = (s + d) / 2` or :math:`h = (s - d) / 2` of the explained output, whose sum's
        gradient is shifted. A relevance :math:`t` explains :math:`\\sum_k t_k g_k`, in which it is linear.'''
        half = gradient / 2
        return half if self.output == 'g' else -half, half.to(sum_dtype) * damping

    def combine(self, gradient: Tensor, sum_gradient: Tensor) -> Tensor:
        '''The local sensitivities.'''
        if self.sign == '':
            return gradient
        return sum_gradient + gradient if self.sign == '+' else sum_gradient - gradient

    def at_layer(self, gradient: Tensor, sum_gradient: Tensor, difference: Tensor, stream_sum: Tensor) -> Tensor:
        '''The sensitivities' mean over channels.'''
        return self.combine(gradient, sum_gradient).mean(1)


class ActivatedSensitivity(Sensitivity):
    '''The product of a stream's sensitivity and its activation (equations 6 and 7).

    Parameters
    ----------
    stream : {'+g', '-g', 'g', '+h', '-h', 'h'}
        The stream, see :py:class:`Sensitivity`.
    '''
    name = 'SplitCAM'

    def __init__(self, stream: str):
        super().__init__(stream)
        self.sums = self.reads_sum

    def at_layer(self, gradient: Tensor, sum_gradient: Tensor, difference: Tensor, stream_sum: Tensor) -> Tensor:
        '''The sum over channels of sensitivity times activation, which is not rectified.'''
        activation = self.combine(difference, stream_sum) / 2 if self.sign else difference
        return (self.combine(gradient, sum_gradient) * activation).sum(1)


class Relevance(Readout):
    '''The relevance of a stream (section 4.2). At the output, all relevance is in the positive stream.

    Parameters
    ----------
    stream : {'positive', 'negative', 'combined'}
        :math:`R^+`, :math:`R^-` or :math:`R^+ - R^-` (equation 10).
    '''
    name, reads_sum, sums = 'SplitLRP', True, True
    advice = 'try recentering=Relative() or an input in float64'
    vanishes = (
        'no relevance arrives. Where a layer\'s outputs are no larger than epsilon, epsilon takes all of it: pass a'
        ' smaller one, such as epsilon=1e-20, or one that follows the outputs, zennit.core.Stabilizer(1e-6,'
        ' norm_scale=True)'
    )
    streams = ('positive', 'negative', 'combined')

    def __init__(self, stream: str):
        super().__init__()
        self.stream = stream
        if stream == 'negative':  # which may get none
            self.vanishes = ''

    def combine(self, gradient: Tensor, sum_gradient: Tensor) -> Tensor:
        '''The relevances, which the gradients of difference and sum stand for.'''
        return {'positive': gradient, 'negative': sum_gradient}.get(self.stream, gradient - sum_gradient)
