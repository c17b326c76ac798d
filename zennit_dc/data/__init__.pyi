from .classifiers import (
    IMAGENET_PREPROCESSING as IMAGENET_PREPROCESSING,
    Classifier as Classifier,
    layers as layers,
    load_classifier as load_classifier,
)
from .files import UnreadableImage as UnreadableImage
from .images import (
    ImageArray as ImageArray,
    ImageFolder as ImageFolder,
    label_map as label_map,
    load_label_map as load_label_map,
    read_image as read_image,
)
