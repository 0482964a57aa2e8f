"""Threads that share one processor get the results that one thread gets."""

import copy
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch


GRID = torch.arange(16).view(4, 4)
PROMPTS = ["owl <|soi|> red", "a red apple", "two hearts [PAD]", "<|mmu|> cat <|endoftext|>"]


@pytest.fixture
def frequent_switches():
    """Let Python change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def calls(processor) -> list:
    """Calls that need different settings of one tokenizer."""

    def messages(text):
        return [{"role": "user", "content": [{"type": "image", "image": GRID}, {"type": "text", "text": text}]}]

    def chat(text, **options):
        inputs = processor.apply_chat_template(messages(text), tokenize=True, return_dict=True, **options)
        return inputs["input_ids"].tolist()

    found = []
    for text in PROMPTS:
        found += [
            lambda text=text: processor.text_to_image_prefix([text])["input_ids"].tolist(),
            lambda text=text: processor.text_ids(text),
            lambda text=text: processor(text=[text, "owl"])["input_ids"].tolist(),
            lambda text=text: processor(text=text, padding="max_length", max_length=40)["input_ids"].tolist(),
            lambda text=text: chat(text),
            lambda text=text: chat(text.replace("<|", "").replace("|>", ""), return_assistant_tokens_mask=True),
            lambda text=text: processor.decode(processor.text_ids(text)),
            lambda text=text: processor.batch_decode([processor.text_ids(text)], skip_special_tokens=True),
        ]
    return found


@pytest.mark.filterwarnings("ignore:A text of")
def test_threads_share_a_processor(frequent_switches):
    processor = tiny.processor()
    work = calls(processor)
    expected = [call() for call in work]
    order = [index for index in range(len(work)) for _ in range(15)]
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda index: work[index](), order))
    wrong = [index for index, result in zip(order, results, strict=True) if result != expected[index]]
    assert not wrong, f"{len(wrong)} of {len(order)} calls differ"


def test_a_processor_stays_copyable(tmp_path):
    processor = tiny.processor()
    processor.save_pretrained(tmp_path)
    copies = [
        copy.deepcopy(processor),
        pickle.loads(pickle.dumps(processor)),
        type(processor).from_pretrained(tmp_path),
    ]
    for other in copies:
        assert other.text_ids(PROMPTS[0]) == processor.text_ids(PROMPTS[0])
