'''The names of classes.'''
import json

import pytest

from zennit_dc.data.categories import choice_of, find_class, load_categories, require_names


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


def test_file_with_a_byte_order_mark(tmp_path):
    for name, content in (('names.txt', '\r\n'.join(NAMES)), ('names.json', json.dumps(NAMES))):
        (tmp_path / name).write_bytes(content.encode('utf-8-sig'))
        assert load_categories(tmp_path / name) == NAMES


@pytest.mark.parametrize('name, content, message', [
    ('missing.txt', None, 'missing.txt cannot be read as names of classes: No such'),
    ('a.json', '{', 'a.json cannot be read'),
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


def test_names_that_contain_the_word_come_first():
    names = ['crate', 'oxcart', 'Egyptian cat', 'polecat', 'tiger cat', 'cat of the woods', 'cat a', 'cat b', 'cat c']
    with pytest.raises(ValueError, match="'cat a' or 'cat b' or 'cat c' or 'tiger cat' or 'Egyptian cat' or one of 1"):
        find_class('cat', len(names), names)
    with pytest.raises(ValueError, match="did you mean 'Egyptian cat'"):
        find_class('cat, Egyptian', len(names), names)
    with pytest.raises(ValueError, match="did you mean 'crate'"):
        find_class('crat', len(names), names)


NUMBERS = [
    (['1', '2', '3', '4', '5'],
     {'3': 2, '5': 4, ' 1 ': 0, '0': 0, '03': 2, '3.0': 2, 'index:3': 3, 'INDEX: 4': 4, 3: 3}),
    (['0', '1', '10', '2'], {'10': 2, '2': 3, '3': 3, 'index:2': 2}),  # folders in the order of their names
    (['-1', '0', '1'], {'-1': 0, '1': 2, '+1': 2, '2': 2}),
    (['0.5', '1.0', '1.5'], {'1': 1, '.5': 0, '1.50': 2, '2': 2}),
    (['01', '1', '001'], {'1': 1, '01': 0, '001': 2}),
    (['18-24', '25', '100 m'], {'18 24': 0, '25': 1, '100 M': 2, '2': 2}),
]


@pytest.mark.parametrize('names, expected', NUMBERS, ids=lambda each: each[0] if isinstance(each, list) else '')
def test_a_name_goes_before_an_index(names, expected):
    assert {name: find_class(name, len(names), names) for name in expected} == expected
    for index, name in enumerate(names):
        assert find_class(name, len(names), names) == index
        assert find_class(f'index:{index}', len(names), names) == find_class(index, len(names), names) == index


def test_numbers_that_are_neither_name_nor_index():
    for name, names, message in (
        ('-2', ['1', '2'], 'no class -2'), ('7', ['1', '2'], 'no class 7'), ('index:2', ['1', '2'], 'no class 2'),
        ('2.5', ['1', '2'], "no class named '2.5'"), ('index:x', ['1', '2'], "no class named 'index:x'"),
        ('+1', ['1.0', '01'], r'several classes are named .* indices 0, 1, as in index:0'),
    ):
        with pytest.raises(ValueError, match=message):
            find_class(name, len(names), names)


def test_what_a_number_was_taken_for():
    names = ['1', '2', '3', '4', '5']
    assert choice_of('3', 5, names) == "the class named '3', whose index is 2"
    assert choice_of('0', 5, names) == "the class of index 0, named '1'"
    assert choice_of('index:3', 5, names) == "the class of index 3, named '4'"
    assert choice_of('1', 3, NAMES) == "the class of index 1, named 'Siamese cat'"
    assert choice_of('tench', 3, NAMES) is choice_of('1', 3, None) is choice_of('likely', 3, NAMES) is None
