'''Models of transformers with random weights, from small configurations.'''
import torch
import transformers
from torch import nn


SMALL = {
    'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 64, 'image_size': 32,
    'patch_size': 8,
}
STAGES = {'hidden_sizes': [16, 24, 32, 48], 'depths': [1, 1, 1, 1]}
CONFIGURATIONS = {
    'ViT': SMALL, 'DeiT': SMALL, 'Beit': SMALL, 'Dinov2': {**SMALL, 'mlp_ratio': 2},
    'Swin': {'embed_dim': 24, 'depths': [1, 2], 'num_heads': [2, 3], 'image_size': 32, 'window_size': 4},
    'ConvNext': {**STAGES, 'image_size': 64},
    'ResNet': {**STAGES, 'embedding_size': 16, 'layer_type': 'basic'},
    'RegNet': {**STAGES, 'embedding_size': 16, 'groups_width': 8},
    'MobileNetV2': {'image_size': 64, 'depth_multiplier': .35},
    'MobileViT': {
        'image_size': 64, 'hidden_sizes': [24, 32, 40], 'neck_hidden_sizes': [8, 12, 16, 24, 24, 32, 64],
        'num_attention_heads': 2, 'initializer_range': .2
    },
    'PoolFormer': STAGES,
    'Segformer': {
        'hidden_sizes': [16, 16, 32, 32], 'depths': [1, 1, 1, 1], 'num_attention_heads': [1, 1, 2, 2],
        'decoder_hidden_size': 16
    },
}
LARGER = ('ResNet', 'RegNet', 'ConvNext', 'MobileNetV2', 'MobileViT', 'PoolFormer', 'Segformer')


class ImageEncoder(nn.Module):
    '''CLIP's encoder of images with a linear layer.'''
    def __init__(self, **options):
        super().__init__()
        self.encoder = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**options))
        self.head = nn.Linear(options['hidden_size'], 5)

    def forward(self, pixel_values):
        return {'logits': self.head(self.encoder(pixel_values=pixel_values).pooler_output)}


def build(name):
    '''A model for five classes by its name, and an image for it.'''
    torch.manual_seed(0)
    if name == 'CLIP':
        model = ImageEncoder(**SMALL)
    else:
        config = getattr(transformers, f'{name}Config')(num_labels=5, **CONFIGURATIONS[name])
        model = getattr(transformers, f'{name}ForImageClassification')(config)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=.02)
    size = 64 if name in LARGER else 32
    return model.eval(), torch.randn(1, 3, size, size)


NAMES = [*CONFIGURATIONS, 'CLIP']
