"""The specification: each paragraph is cited by a test, and no citation points nowhere."""

import ast
import os
import re

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)

#: A citation: "semantics 7.6", "semantics 1.4, 7.4", "semantics 3.2 to 3.4"; a line may end in it.
NUMBER = r'\d+(?:\.\d+)*'
CITATION = re.compile(r'\bsemantics[\s#(]+(%s(?:(?:,|\s+to|\s+and)[\s#]+%s)*)' % (NUMBER, NUMBER),
                      re.IGNORECASE)


def specification():
    with open(os.path.join(TESTS, 'SEMANTICS.md'), encoding='utf-8') as stream:
        return stream.read()


def chapters(text):
    """Return the numbers of the chapters of the specification, in their order."""
    return re.findall(r'^## (\d+)\. ', text, re.M)


def paragraphs(text):
    """Return the numbers of the paragraphs of the specification, in their order."""
    return re.findall(r'^- \*\*(\d+\.\d+)\*\* ', text, re.M)


def cited(text):
    """Return (number, line) for each number that a text cites; a range stands for its ends."""
    return [(number, text.count('\n', 0, match.start()) + 1)
            for match in CITATION.finditer(text) for number in re.findall(NUMBER, match.group(1))]


def files(*places):
    """Return the paths of all text files below some places of the project."""
    found = []
    for place in places:
        path = os.path.join(ROOT, place)
        for folder, _, names in os.walk(path) if os.path.isdir(path) else [(ROOT, [], [place])]:
            found += [os.path.join(folder, name) for name in names
                      if name.endswith(('.py', '.pyi', '.md', '.cfg'))]
    return sorted(found)


def read(path):
    with open(path, encoding='utf-8') as stream:
        return stream.read()


def functions_of_tests(text):
    """Return the test functions of a module, as a list of their source, methods included."""
    lines = text.split('\n')

    def parts(body, end):
        starts = [one.lineno for one in body] + [end]
        for one, stop in zip(body, starts[1:]):
            if isinstance(one, ast.ClassDef):
                for part in parts(one.body, stop):
                    yield part
            elif isinstance(one, ast.FunctionDef) and one.name.startswith('test_'):
                yield '\n'.join(lines[one.lineno - 1:stop - 1])
    return list(parts(ast.parse(text).body, len(lines) + 1))


def cited_by_tests():
    """Return the set of the numbers that test functions cite."""
    return {number for path in files('tests')
            if re.match(r'(test_\w+|contracts)\.py$', os.path.basename(path))
            for test in functions_of_tests(read(path)) for number, _ in cited(test)}


def test_paragraphs_stand_in_their_order_in_their_chapters():
    text = specification()
    numbers = [[int(part) for part in one.split('.')] for one in paragraphs(text)]

    assert numbers == sorted(numbers) and len(set(map(tuple, numbers))) == len(numbers)
    assert len(numbers) == text.count('\n- ')
    known = chapters(text)
    chapter = None
    for line in text.split('\n'):
        chapter = (chapters(line) or [chapter])[0]
        for number in paragraphs(line):
            assert number.split('.')[0] == chapter
    assert known == sorted(known, key=int)


def test_each_paragraph_is_cited_by_a_test():
    known = cited_by_tests()

    assert [one for one in paragraphs(specification()) if one not in known] == []


def test_no_citation_points_nowhere():
    text = specification()
    known = set(paragraphs(text) + chapters(text))

    nowhere = ['%s:%d: semantics %s' % (os.path.relpath(path, ROOT), line, number)
               for path in files('sequent.py', 'backends', 'tests', 'README.md', 'CHANGES.md',
                                 'examples', 'setup.cfg')
               if os.path.basename(path) != os.path.basename(__file__)
               for number, line in cited(read(path)) if number not in known]

    assert nowhere == []


def test_paragraphs_that_refer_to_others_refer_to_what_is_there():
    text = specification()
    known = set(paragraphs(text))

    referred = re.findall(r'\((\d+\.\d+)\)', text)

    assert len(referred) >= 10
    assert [one for one in referred if one not in known] == []


# The page on how promises are tried, and the README ##############################


@pytest.fixture
def tried():
    return read(os.path.join(TESTS, 'README.md'))


def test_the_page_on_tests_has_each_test_file_once(tried):
    there = sorted(name for name in os.listdir(TESTS) if re.match(r'test_\w+\.py$', name))

    assert sorted(re.findall(r'^\| `(test_\w+\.py)` \| \S', tried, re.M)) == there


@pytest.mark.parametrize('page', ['README.md', 'tests/README.md'])
def test_tests_that_pages_name_are_there(page):
    sources = {os.path.basename(path): read(path) for path in files('tests')}
    named = re.findall(r'`(test_\w+)`', read(os.path.join(ROOT, page)))
    named_files = re.findall(r'`(test_\w+\.py)`', read(os.path.join(ROOT, page)))

    assert named_files
    assert [one for one in named_files if one not in sources] == []
    assert [one for one in named if not any(
        re.search(r'^ *def %s\(' % one, text, re.M) for text in sources.values())] == []


def test_promises_on_the_page_on_tests_are_paragraphs(tried):
    rows = re.findall(r'^\| [^`|]+ \| ([\d., to]+) \| ', tried, re.M)
    known = set(paragraphs(specification()))

    assert len(rows) > 20
    assert [one for row in rows for one in re.findall(NUMBER, row) if one not in known] == []


# How citations are read ##########################################################


@pytest.mark.parametrize('text, numbers', [
    ('# semantics 7.6', ['7.6']),
    ('# semantics 1.4, 7.4: nothing', ['1.4', '7.4']),
    ('(semantics 3.2 to 3.4), and', ['3.2', '3.4']),
    ('Semantics 2.6 and 2.7: what 3.3 says', ['2.6', '2.7']),
    ('as it was (semantics\n    3.4). In 5 cases', ['3.4']),
    ('# a stop (semantics\n# 8.3)', ['8.3']),
    ('the semantics of 2.7', []),
])
def test_what_is_a_citation(text, numbers):
    assert [number for number, _ in cited(text)] == numbers


def test_what_a_test_function_cites_is_told_from_what_stands_around():
    module = ('"""Semantics 1.1"""\n'
              'def tool():\n    # semantics 1.2\n    pass\n'
              'def test_a():\n    def inner():\n        pass    # semantics 1.3\n'
              'class TestB:\n    """Semantics 1.4"""\n'
              '    def test_b(self):\n        pass    # semantics 1.5\n')

    assert [cited(test)[0][0] for test in functions_of_tests(module)] == ['1.3', '1.5']
