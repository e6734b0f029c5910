"""All keys of a curation run, without any threshold. The other files of this folder are published recipes.

A recipe names its stages in order. A stage measures the documents (columns), and some stages rewrite them. A stage's options
are the section of its name. `rules` then says which documents stay: column -> (least, most), or allowed strings, or () for no
rule. The report shows a histogram of each such column. After a change of thresholds only the last step is done anew.
"""

import ml_collections
from ml_collections.config_dict import placeholder

INF = float("inf")


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    # builtin:python is the code, docstrings and docs of this Python installation.
    config.input = ""  # files, folders and globs with commas between; NAME=FILES names a source: web=crawl/*.warc.gz,books=txt
    config.stages = ""  # with commas between, in order; see data/recipe/stages.py
    config.runner = "local"  # processes of this machine; or beam: Apache Beam
    config.processes = 0  # of this machine; 0: one on each core
    config.beam_options = ""  # such as "--runner=FlinkRunner --flink_master=HOST:8081"; default: Beam's runner on this machine

    config.tokenizer = ""  # a workdir, SentencePiece model or Hugging Face folder; writes WORKDIR/dataset, for train.py
    config.dataset = ml_collections.ConfigDict()
    config.dataset.sequence_length = 1024  # tokens of a row; that of the training
    config.dataset.valid_fraction = 0.005  # fraction of the documents for validation
    config.dataset.max_valid_bytes = 10_000_000  # of validation text, over all sources
    config.dataset.seed = 0  # of the hash that chooses the validation documents
    config.dataset.bucket_by = ""  # a column of numbers, such as classifier_quality: SOURCE becomes SOURCE_q1 (lowest) … _qN
    config.dataset.buckets = 4  # of about equal bytes of text; train.py orders or weighs them by data.weights

    config.read = ml_collections.ConfigDict()  # how files are read, see data/sources/archives
    config.read.text_key = "text"  # field or column of JSONL and Parquet that holds the text
    config.read.main_content = True  # of HTML pages: leave out menus, headers and footers
    config.read.max_bytes = placeholder(int)  # of text from each TFDS dataset and each source of builtin:python; none: all
    config.read.format = placeholder(str)  # of all files, instead of looking at their names: warc, html, code, mail, …

    config.c4 = ml_collections.ConfigDict()
    config.c4.end_marks = (".", "?", "!", '"', "'")  # a line must end in one of them; (): any end
    config.c4.min_words = 3  # of a line; -1: any number
    config.c4.longest_word = 1000  # characters; a line with a longer one is dropped

    config.language = ml_collections.ConfigDict()
    config.language.sample = 4096  # characters of a document that are read, in slices

    config.classifier = ml_collections.ConfigDict()
    config.classifier.model = ""  # folder of python -m data.filters.classifier; several: NAME=DIR,NAME=DIR
    config.classifier.name = "quality"  # of a model without NAME=; the column is classifier_NAME

    config.exact_duplicates = ml_collections.ConfigDict()
    config.exact_duplicates.normalise = "whitespace"  # what equal texts may differ in: none, whitespace, case, ccnet
    config.exact_duplicates.keep = "first"  # which of several equal documents stays: the first, or a column's highest

    config.repeated_pieces = ml_collections.ConfigDict()
    config.repeated_pieces.kind = "paragraph"  # paragraph, line, sentences (spans of three), window (of words)
    config.repeated_pieces.normalise = "whitespace"  # what equal pieces may differ in: none, whitespace, case, ccnet
    config.repeated_pieces.min_characters = 1  # of a normalised piece; shorter ones are never duplicates
    config.repeated_pieces.window = 50  # words
    config.repeated_pieces.keep = "first"  # which of several equal pieces stays: the first, or that of a column's highest

    config.near_duplicates = ml_collections.ConfigDict()
    config.near_duplicates.n = 5  # size of a shingle, in `units`
    config.near_duplicates.units = "words"  # or characters
    config.near_duplicates.bands = 28  # two documents of similarity J meet with probability 1 − (1 − J^rows)^bands
    config.near_duplicates.rows = 4  # hashes of a band; more find only more similar documents
    config.near_duplicates.seed = 1  # of the hash functions
    config.near_duplicates.threshold = 0.5  # least Jaccard similarity of a verified pair; 0: verify none
    config.near_duplicates.keep = "first"  # which document of a cluster stays: the first, or a column's highest

    config.urls = ml_collections.ConfigDict()  # files with one entry a line; "": the short lists of data/filters/urls.py
    config.urls.domains = ""  # example.com blocks www.example.com too
    config.urls.urls = ""  # whole addresses, without scheme and fragment
    config.urls.strict_words = ""  # words; rules.url_strict_words counts those of an address
    config.urls.soft_words = ""  # words; rules.url_soft_words counts those of an address
    config.urls.substrings = ""  # parts of words; rules.url_substrings counts those of an address

    config.bad_words = ml_collections.ConfigDict()
    config.bad_words.lists = ""  # a folder with a file of offensive words for each language, such as those of LDNOOBW

    config.decontaminate = ml_collections.ConfigDict()
    config.decontaminate.benchmarks = ""  # files of benchmark items: JSONL, Parquet, CSV
    config.decontaminate.fields = ()  # whose texts make an item; (): all that hold text
    config.decontaminate.n = 13  # words of an n-gram
    config.decontaminate.policy = "cut"  # matches and what is around them; or measure, with rules.contamination_matches=(0, 0)
    config.decontaminate.around = 200  # characters on each side
    config.decontaminate.least_slice = 200  # characters; shorter slices go
    config.decontaminate.most_pieces = 10  # a document that is cut into more slices goes

    config.pii = ml_collections.ConfigDict()
    config.pii.style = "placeholder"  # <EMAIL>; or same_length; or fineweb: reserved addresses for e-mail and IP addresses
    config.pii.kinds = ("secret", "email", "iban", "card", "ip", "ssn", "phone")  # what is masked; secret: keys and tokens
    config.pii.public_ips_only = True  # leave addresses of private networks and of documentation
    # Countries whose phone numbers are found without a country code.
    config.pii.regions = tuple(
        """US GB FR DE IT ES NL BE CH AT SE IE PL AU IN JP KR CN BR MX TR ZA PT DK NO FI CZ SK HU RO GR UA RU IL AE SA EG NG KE
        PK BD TH VN ID MY PH SG HK TW NZ AR CL CO PE""".split()
    )

    config.browse = ml_collections.ConfigDict()  # WORKDIR/browse.html, which shows documents with all their measures
    config.browse.documents = 1000  # at most, of each reason and of those that stay about as many; 0: no page
    config.browse.characters = 6000  # at most, of a document's text
    config.browse.megabytes = 10  # of the page, about; texts are cut shorter until they fit

    config.audit = True  # measure what is said near identity terms, and topics, before and after
    config.rules = ml_collections.ConfigDict()  # column -> (least, most), allowed strings, or (): no rule
    return config


def urls(rules: ml_collections.ConfigDict) -> None:
    """Add the bounds of datatrove 0.10.1's URLFilter."""
    rules.url_domain = (0, 0)
    rules.url_listed = (0, 0)
    rules.url_strict_words = (0, 0)
    rules.url_soft_words = (0, 1)
    rules.url_substrings = (0, 0)


def gopher_quality(rules: ml_collections.ConfigDict) -> None:
    """Add the thresholds of Rae et al. (2021), A.1.1, as in datatrove 0.10.1."""
    rules.gopher_words = (50, 100_000)
    rules.gopher_mean_word_length = (3, 10)
    rules.gopher_hash_ratio = (0, 0.1)
    rules.gopher_ellipsis_ratio = (0, 0.1)
    rules.gopher_bullet_lines = (0, 0.9)
    rules.gopher_ellipsis_lines = (0, 0.3)
    rules.gopher_letter_words = (0.8, 1)
    rules.gopher_stop_words = (2, INF)


def gopher_repetition(rules: ml_collections.ConfigDict) -> None:
    """Add the thresholds of Rae et al. (2021), table A1."""
    rules.gopher_duplicate_paragraphs = (0, 0.3)
    rules.gopher_duplicate_paragraph_characters = (0, 0.2)
    rules.gopher_duplicate_lines = (0, 0.3)
    rules.gopher_duplicate_line_characters = (0, 0.2)
    for n, share in zip(range(2, 5), (0.2, 0.18, 0.16)):
        rules[f"gopher_top_{n}_gram"] = (0, share)
    for n, share in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)):
        rules[f"gopher_duplicate_{n}_grams"] = (0, share)


def c4(rules: ml_collections.ConfigDict, sentences: int) -> None:
    """Add the thresholds of Raffel et al. (2020), 2.2."""
    rules.c4_lorem_ipsum = (0, 0)
    rules.c4_curly_brackets = (0, 0)
    rules.c4_sentences = (sentences, INF)


def fineweb_quality(rules: ml_collections.ConfigDict) -> None:
    """Add the thresholds of Penedo et al. (2024), 3.6, as in datatrove 0.10.1."""
    rules.fineweb_ended_lines = (0.12, 1)
    rules.fineweb_short_lines = (0, 0.67)
    rules.fineweb_duplicate_characters = (0, 0.01)
    rules.fineweb_newlines = (0, 0.3)
