"""Text tokenizers of language models: from `tokenizer.json`, or from SentencePiece's `tokenizer.model` alone.

transformers' own classes rebuild a tokenizer from its vocabulary with the settings of one model family. For a
SentencePiece model, these settings differ from the file's: the space before the first word, repeated spaces. So a
`tokenizer.json` is loaded exactly as it is, and a SentencePiece model is converted by what its own file says.
"""

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf


#: Names of a SentencePiece model in the folders of language models, in the order of the search.
SENTENCEPIECE_NAMES = ("tokenizer.model", "spm.model", "spiece.model", "sentencepiece.model")
#: Kinds of SentencePiece models, and of their pieces, as numbered in SentencePiece's `sentencepiece_model.proto`.
UNIGRAM, BPE = 1, 2
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
SPACE = "\u2581"  # SentencePiece's mark of a space


def load_text_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """
    Load the text tokenizer of a language model, as a fast tokenizer. No code of the folder runs.

    Args:
        folder: a `tokenizer.json` in it is loaded as it is. Otherwise a SentencePiece model is converted, see
            [`tokenizer_of_sentencepiece`].

    Raises:
        ValueError: if there is neither file, or the SentencePiece model cannot be converted.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    for name in SENTENCEPIECE_NAMES:
        if (folder / name).is_file():
            return tokenizer_of_sentencepiece(folder / name)
    raise ValueError(
        f"'{folder}' has no text tokenizer. Allowed are `tokenizer.json` and a SentencePiece model "
        f"({', '.join(SENTENCEPIECE_NAMES)})."
    )


def tokenizer_of_sentencepiece(file: str | Path) -> PreTrainedTokenizerFast:
    """
    Convert a SentencePiece model, unigram or BPE, to a fast tokenizer with the same ids.

    The normalization, the space before the first word, repeated spaces and byte fallback follow the file. Control
    symbols such as `<s>` become special tokens, so they are found in a text; SentencePiece finds them nowhere. After a
    special token or a user-defined symbol the text begins anew: if the file puts a space before the first word, it is
    put there as well. `bos_token`, `eos_token` and `unk_token` are those of the file.

    Two things differ from SentencePiece. An unknown token decodes to its name instead of " ⁇ ". And where a combining
    mark follows a character that the file's table replaces (NFKC), the library `tokenizers` normalizes both as one, so
    the mark can be lost.

    Raises:
        ImportError: if the package `protobuf` is missing or too old.
        ValueError: if the file is not a SentencePiece model, is a word or character model, or puts the space after
            words.
    """
    proto = read_sentencepiece(file)
    trainer, spec = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (UNIGRAM, BPE) or trainer.treat_whitespace_as_suffix or not spec.escape_whitespaces:
        raise ValueError(
            f"The SentencePiece model '{file}' must be of type unigram or BPE with the space before words, got "
            f"model_type={trainer.model_type}, treat_whitespace_as_suffix={trainer.treat_whitespace_as_suffix}, "
            f"escape_whitespaces={spec.escape_whitespaces}."
        )
    if trainer.model_type == UNIGRAM:
        backend = Tokenizer(unigram_model(proto))
        backend.pre_tokenizer = names_split(proto)
    else:
        backend = Tokenizer(bpe_model(proto))
    backend.normalizer = normalizer_of(spec)
    backend.decoder = decoder_of(spec)
    symbols = [piece for piece in proto.pieces if piece.type in (CONTROL, USER_DEFINED)]
    backend.add_tokens([AddedToken(p.piece, normalized=False, special=p.type == CONTROL) for p in symbols])
    named = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "unk_token": trainer.unk_id}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{name: proto.pieces[index].piece for name, index in named.items() if 0 <= index < len(proto.pieces)},
    )


def read_sentencepiece(file: str | Path) -> Any:
    """The `ModelProto` message of a SentencePiece model."""
    try:
        from google.protobuf.message import DecodeError

        proto = import_protobuf().ModelProto()
    except Exception as error:  # the package is missing, or too old for sentencepiece's generated code
        raise ImportError(
            f"'{file}' needs the package `protobuf` in a version that fits `sentencepiece` (pip install -U protobuf): "
            f"{error}"
        ) from error
    try:
        proto.ParseFromString(Path(file).read_bytes())
    except DecodeError as error:
        raise ValueError(f"'{file}' is not a SentencePiece model: {error}") from error
    if not proto.pieces:
        raise ValueError(f"'{file}' is not a SentencePiece model: it has no pieces.")
    return proto


def unigram_model(proto: Any) -> models.Unigram:
    """The pieces with their log-probabilities; the most probable segmentation of a text is its tokens."""
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(pieces, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)


def names_split(proto: Any) -> pre_tokenizers.PreTokenizer:
    """
    Split a text inside each name of a control symbol, of the unknown token or of a byte, before its last character.

    SentencePiece never finds these names in a text. The library's unigram model finds every piece, but not across a
    split.
    """
    names = [piece.piece for piece in proto.pieces if piece.type in (UNKNOWN, CONTROL, BYTE) and len(piece.piece) > 1]
    pattern = "|".join(f"(?<={re.escape(name[:-1])}){re.escape(name[-1])}" for name in names)
    return pre_tokenizers.Split(Regex(pattern), behavior="merged_with_next")


def bpe_model(proto: Any) -> models.BPE:
    """The pieces, merged in the order of their scores. Symbols and bytes are never the result of a merge."""
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    unmerged = {piece.piece for piece in proto.pieces if piece.type in (UNKNOWN, CONTROL, USER_DEFINED, BYTE)}
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.BPE(
        vocab=vocabulary,
        merges=generate_merges(vocabulary, scores, skip_tokens=unmerged),
        unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
        fuse_unk=True,  # SentencePiece has one id for a run of unknown characters
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def normalizer_of(spec: Any) -> normalizers.Normalizer:
    """SentencePiece's steps on a text, in its order: its table of characters, spaces, the space before the text."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # A mark of a space in the text counts as a space.
        steps += [normalizers.Replace(Regex(f"[ {SPACE}]+"), " "), normalizers.Replace(Regex(r"\A +| +\z"), "")]
    steps.append(normalizers.Replace(" ", SPACE))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence(steps)


def decoder_of(spec: Any) -> decoders.Decoder:
    """Tokens to text: spaces for their marks, bytes to characters, without the space before the text."""
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    return decoders.Sequence(steps)
