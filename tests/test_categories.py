'''The names of classes.'''
import json

import pytest

from zennit_dc.data.categories import find_class, load_categories, require_names

NAMES = ['tench', 'Siamese cat', 'great white shark']


@pytest.mark.parametrize('name, content', [
    ('names.txt', '\n'.join(NAMES) + '\n'), ('names.json', json.dumps(NAMES)),
    ('index.json', json.dumps({str(index): [f'n{index}', name] for index, name in reversed([*enumerate(NAMES)])})),
    ('plain.json', json.dumps(dict(enumerate(NAMES)))),
    ('class_to_idx.json', json.dumps({name: index for index, name in reversed([*enumerate(NAMES)])})),
    ('map.json', json.dumps([{'index': index, 'word_net_id': f'n{index}', 'name': name}
                             for index, name in enumerate(NAMES)])),
])
def test_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert load_categories(tmp_path / name) == NAMES


@pytest.mark.parametrize('name, content, message', [
    ('missing.txt', None, 'missing.txt cannot be read'), ('a.json', '{', 'a.json cannot be read'),
    ('a.json', '[1, 2]', 'no name for class 0'), ('a.json', '{"0": "a", "2": "b"}', 'no name for class 1'),
    ('a.json', '3', 'cannot be read'), ('a.json', '{"x": "a"}', 'cannot be read'), ('a.json', '[{}]', 'cannot be read'),
    ('a.txt', 'a\n\nb', 'no name for class 1'), ('a.json', '{"0": []}', 'cannot be read'),
    ('a.json', '{"a": 0, "b": 2}', 'no name for class 1'), ('a.json', '{"a": 0, "b": 0}', "'a' and 'b' are both class"),
    ('a.json', '{"a": true}', 'cannot be read'),
])
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_categories(tmp_path / name)


def test_as_many_names_as_classes():
    require_names(NAMES, 3, 'names.txt')
    for count in (2, 4):
        with pytest.raises(ValueError, match=f'names.txt has the names of 3 classes, but the model has {count}'):
            require_names(NAMES, count, 'names.txt')


def test_classes_by_index_and_name():
    for name in ('1', 1, 'siamese cat', 'Siamese_Cat', ' SIAMESE  cat'):
        assert find_class(name, 3, NAMES) == 1
    for name, message in (
        ('3', 'no class 3, but those from 0 to 2'), (-1, 'no class -1'), ('1' * 99, 'there is no class 1111'),
        ('Siamese dog', "did you mean 'Siamese cat'"), ('xyz', "no class named 'xyz'$")
    ):
        with pytest.raises(ValueError, match=message):
            find_class(name, 3, NAMES)
    with pytest.raises(ValueError, match='must be an index'):
        find_class('tench', 3)
    with pytest.raises(ValueError, match='one of the indices 0, 2'):
        find_class('crane', 3, ['crane', 'x', 'Crane'])
