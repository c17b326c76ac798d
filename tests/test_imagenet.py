'''The classes of ImageNet and their WordNet IDs.'''
import torchvision

from zennit_dc.data.imagenet import RENAMED, imagenet_classes, wordnet_ids
from zennit_dc.data.images import find_labels, label_map


NAMES = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta['categories']


def test_classes_are_those_of_torchvision_in_their_order():
    ids, names = zip(*imagenet_classes())
    assert [*ids] == sorted({*ids}) and len(ids) == 1000
    assert {index for index, name in enumerate(names) if name != NAMES[index]} <= {*RENAMED}
    known = {'tench': 'n01440764', 'great white shark': 'n01484850', 'toilet tissue': 'n15075141'}
    assert {name: ids[names.index(name)] for name in known} == known


def test_ids_are_for_the_classes_of_imagenet_alone():
    ids = wordnet_ids(NAMES)
    assert ids == [each for each, _ in imagenet_classes()]
    assert wordnet_ids([name.upper().replace(' ', '_') for name in NAMES]) == ids
    older = {134: 'crane', 639: 'maillot'}
    assert wordnet_ids([older.get(index, name) for index, name in enumerate(NAMES)]) == ids
    assert wordnet_ids(NAMES[::-1]) is wordnet_ids(NAMES[:999]) is wordnet_ids([]) is None
    assert wordnet_ids([*NAMES[:3], 'another', *NAMES[4:]]) is None


def test_folders_named_by_wordnet_ids_have_their_classes():
    entries = label_map(NAMES)
    names = ['n01484850/a.jpg', 'n15075141/b.jpg', 'great_white_shark/c.jpg', 'b.jpg']
    assert find_labels(names, entries) == [2, 999, 2, None]
    assert label_map(NAMES, {2: 'sharks'})[2] == {
        'index': 2, 'word_net_id': 'sharks', 'name': 'great white shark'
    }
    assert label_map(['cat', 'dog'])[1]['word_net_id'] == '00001'
