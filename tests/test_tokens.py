'''Models of token numbers, whose map is read at the embedding.'''
import pytest
import torch
from helpers import assert_close, random_image
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient

from zennit_dc import Logits, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import class_relevance


class Text(nn.Module):
    '''A small classifier of texts, or of what an embedding has made of them.'''
    def __init__(self, order=lambda tokens: tokens):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.conv, self.head = nn.Embedding(20, 6), nn.Conv1d(6, 8, 3, padding=1), nn.Linear(8, 3)
        self.order = order
        self.double().eval()

    def forward(self, tokens):
        return self.rest(self.embedding(self.order(tokens)))

    def rest(self, x):
        return self.head(F.relu(self.conv(x.mT)).amax(2))


class Rest(Text):
    '''The same from the embedding on.'''
    def forward(self, x):
        return self.rest(x)


TOKENS = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(1))
CLASSES = class_relevance(torch.tensor([1, 2, 0]))


@pytest.mark.parametrize('named', [True, False])
@pytest.mark.parametrize('make, reduce', [
    (lambda **kwargs: SplitLRP(**kwargs), torch.sum), (lambda **kwargs: SplitGrad(**kwargs), torch.mean)
])
def test_map_at_the_embedding(make, reduce, named):
    '''It is the map of what follows, by what the embedding makes of the tokens.'''
    model = Text()
    composite = make(layer='embedding') if named else make()
    output, map = Gradient(model, composite)(TOKENS, CLASSES)
    plain, expected = Gradient(Rest(), make())(model.embedding(TOKENS).detach(), CLASSES)
    assert torch.equal(output, model(TOKENS)) and torch.equal(output, plain)
    assert map.shape == TOKENS.shape and map.dtype == torch.float64
    assert_close(map, reduce(expected, -1), 1e-12)
    assert torch.equal(composite.saliency, map) and torch.equal(TOKENS, TOKENS.long())


def test_map_after_the_embedding():
    composite, model = SplitCAM('conv', .3), Text()
    map = Gradient(model, composite)(TOKENS, CLASSES)[1]
    own = SplitCAM('conv', .3)
    expected = Gradient(Rest(), own)(model.embedding(TOKENS).detach(), CLASSES)[1]
    assert_close(composite.saliency, own.saliency, 1e-12)
    assert_close(map, expected.sum(2), 1e-12)


@pytest.mark.parametrize('order', [
    lambda tokens: tokens.t().t(), lambda tokens: tokens + 0, lambda tokens: tokens.view(-1, 7),
    lambda tokens: tokens[:], lambda tokens: tokens.flatten().unflatten(0, (-1, 7)), lambda tokens: tokens.clamp(0, 19),
])
def test_tokens_that_are_moved_before_the_embedding(order):
    expected = Gradient(Text(), SplitLRP())(TOKENS, CLASSES)[1]
    assert_close(Gradient(Text(order), SplitLRP())(TOKENS, CLASSES)[1], expected, 1e-12)


def test_tokens_in_a_context():
    '''The map is the saliency, as there is no gradient by numbers.'''
    model, composite = Text(), SplitCAM('embedding', .3)
    with composite.context(model) as split:
        (split(TOKENS) * CLASSES(model(TOKENS).detach())).sum().backward()
    own = SplitCAM('embedding', .3)
    assert torch.equal(composite.saliency, Gradient(model, own)(TOKENS, CLASSES)[1])


def test_maps_of_tokens_can_be_differentiated():
    model = Text()
    attributor = Gradient(model, SplitGrad(.3), create_graph=True)
    with attributor:
        map = attributor(TOKENS, CLASSES)[1]
        gradient, = torch.autograd.grad(map.square().sum(), model.head.weight)
    assert gradient.abs().max() > 0


def test_embedding_that_is_called_twice():
    model = Text()
    model.forward = lambda tokens: model.rest(model.embedding(tokens) + model.embedding(tokens.flip(1).contiguous()))
    with pytest.raises(ValueError, match='more than once'):
        Gradient(model, SplitLRP(layer='embedding'))(TOKENS, CLASSES)


def test_model_of_numbers_without_an_embedding():
    model = nn.Sequential(nn.EmbeddingBag(20, 3)).double()
    with pytest.raises(NotImplementedError, match='embedding_bag.*nn.Embedding'):
        Gradient(model, SplitLRP())(TOKENS, CLASSES)
    with SplitLRP().context(model), pytest.raises(NotImplementedError, match='token numbers'):
        model('a text')


def test_token_numbers_have_no_gradient_where_the_composite_is_inactive():
    attributor = Gradient(model := Text(), SplitLRP())
    with attributor, attributor.inactive():
        assert torch.equal(model(TOKENS), Text()(TOKENS))
        with pytest.raises(NotImplementedError, match='inactive: take that of what the embedding'):
            attributor(TOKENS, CLASSES)


def test_attributors_of_other_inputs_are_as_they_were():
    model, input = Rest(), random_image(2, 7, 6)
    expected = torch.autograd.grad(model(input.requires_grad_())[:, 1].sum(), input)[0]
    assert torch.equal(Gradient(model)(input.detach(), class_relevance(1))[1], expected)
    with pytest.raises(RuntimeError, match='floating point'):
        Gradient(Text())(TOKENS, CLASSES)


@pytest.mark.parametrize('layer', ['bert.embeddings.word_embeddings', 'bert.encoder.layer.0', None])
@pytest.mark.filterwarnings('ignore:.*canonizers')
def test_bert(layer):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    model = Logits(transformers.BertForSequenceClassification(config).double().eval())
    composite = SplitLRP(layer=layer)
    output, map = Gradient(model, composite)(TOKENS, CLASSES)
    assert torch.equal(output, model(TOKENS))
    assert map.shape == TOKENS.shape
    assert torch.equal(map, composite.saliency) and map.abs().amin(1).max() > 0
    alone = Gradient(model, SplitLRP(layer=layer))(TOKENS[:1], class_relevance(1))[1]
    assert_close(alone, map[:1], 1e-9)
