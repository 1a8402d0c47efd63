"""The blocks through oneDNN: the plain network's numbers, and the plain network where asked."""

from __future__ import annotations

import copy
import os
import pickle
import threading

import pytest
import torch
from networks import small
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maest.models import cpu, get_maest
from maest.models.maest import Maest

pytestmark = pytest.mark.skipif(not cpu.available(), reason="needs an x86 CPU and oneDNN")


@pytest.fixture
def computed(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes that the fast way was taken for."""
    shapes = []
    compute = cpu._compute

    def spy(block, x):
        shapes.append(tuple(x.shape))
        return compute(block, x)

    monkeypatch.setattr(cpu, "_compute", spy)
    return shapes


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param  # the pool leaves it as it is
    torch.set_num_threads(before)


def fast_copy(net: Maest) -> Maest:
    fast = copy.deepcopy(net)
    assert cpu.speed_up(fast)
    return fast


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distilled_type": "separated"},
        {"s_patchout_t_interleaved": 2, "s_patchout_f_indices": [0, 3]},
        {"embed_dim": 96, "num_heads": 3, "mlp_ratio": 2.5},
    ],
)
def test_the_same_numbers(options, computed, threads):
    net = small(**options)
    fast = fast_copy(net)
    with torch.inference_mode():
        for batch, frames in ((1, 16), (1, 27), (2, 101), (5, 312)):
            x = torch.randn(batch, 96, frames)
            for block in (-1, 1, 2):
                expected, found = net(x, block), fast(x, block)
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        waves = torch.sin(torch.arange(80_000) * torch.tensor([[0.1], [0.3]]))
        torch.testing.assert_close(fast(waves), net(waves), rtol=1e-5, atol=1e-5)
    assert len(computed) == 4 * 8 + 3


def test_trained_weights():
    net = get_maest("maest-tiny-scores")
    fast = fast_copy(net)
    x = net.melspectrogram(torch.randn(2, 80_000) * 0.1)[..., :312]
    with torch.no_grad():
        for block in (6, 11, -1):
            expected, found = net(x, block)[1], fast(x, block)[1]
            assert not torch.equal(found, expected)  # other products were used
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "tokens"), [(1, 1), (1, 3), (3, 64), (2, 449), (1, 1121), (7, 95)]
)
def test_tokens_of_any_number(batch, tokens, threads):
    block = small(depth=1).blocks[0]
    x = torch.randn(batch, tokens, 128)
    with torch.no_grad():
        found = cpu._compute(block, x)
        given = x.clone()
        torch.testing.assert_close(found, block(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x, given, rtol=0, atol=0)


def test_tensors_that_are_not_contiguous():
    net = small(depth=1)
    fast = fast_copy(net)
    x = torch.randn(70, 128, 2).permute(2, 0, 1)
    with torch.no_grad():
        torch.testing.assert_close(fast.blocks[0](x), net.blocks[0](x), rtol=1e-5, atol=1e-5)


def test_a_twice_sped_up_network(computed):
    net = small()
    assert cpu.speed_up(net)
    assert cpu.speed_up(net)
    with torch.no_grad():
        net(torch.randn(1, 96, 100))
    assert len(computed) == 3


def test_names_copies_and_files_stay(computed):
    net = small()
    names, modules = list(net.state_dict()), [name for name, _ in net.named_modules()]
    assert cpu.speed_up(net)
    assert list(net.state_dict()) == names
    assert [name for name, _ in net.named_modules()] == modules
    x = torch.randn(1, 96, 100)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        computed.clear()
        with torch.no_grad():
            assert torch.equal(other(x)[0], net(x)[0])
        assert len(computed) == 6
    other = small(depth=3)
    other.load_state_dict(net.state_dict())


def test_weights_that_change_are_used():
    net = small()
    fast = fast_copy(net)
    x = torch.randn(1, 96, 100)
    with torch.no_grad():
        fast(x)
        for one in (net, fast):
            one.blocks[1].mlp.fc1.weight.mul_(2)
        torch.testing.assert_close(fast(x), net(x), rtol=1e-5, atol=1e-5)


def test_gradients_and_training_are_the_modules(computed):
    net = small(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.3)
    fast = fast_copy(net)
    x = torch.randn(2, 96, 100)
    for train in (False, True):
        gradients = []
        for one in (net, fast):
            torch.manual_seed(1)
            one.train(train).zero_grad()
            one(x)[0].sum().backward()
            gradients.append([parameter.grad for parameter in one.parameters()])
        torch.testing.assert_close(*gradients, rtol=0, atol=0)
    torch.manual_seed(1)
    with torch.no_grad():
        expected = net.train()(x)
        torch.manual_seed(1)
        assert torch.equal(fast.train()(x)[0], expected[0])
    assert not computed


@torch.no_grad()
def test_autocast_and_other_types_are_the_modules(computed):
    net = small()
    fast = fast_copy(net)
    x = torch.randn(2, 96, 100)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x)[1], net(x)[1])
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(fast.to(dtype)(x)[1], net.to(dtype)(x)[1])
    assert not computed
    net.float(), fast.float()
    fast(x)
    assert len(computed) == 3


@pytest.mark.filterwarnings("ignore:.*jit.trace:FutureWarning")
@torch.no_grad()
def test_export_tracing_and_counting_are_the_modules(computed):
    net = small(depth=1)
    fast = fast_copy(net)
    x = torch.randn(1, 20, 128)
    block = fast.blocks[0]
    expected = net.blocks[0](x)
    assert torch.equal(torch.export.export(block, (x,)).module()(x), expected)
    assert torch.equal(torch.jit.trace(block, (x,), check_trace=False)(x), expected)
    counted = []
    for one in (net, fast):
        with FlopCounterMode(display=False) as counter:
            one.blocks[0](x)
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    fast.compile_blocks(backend=backend)
    torch.testing.assert_close(block(x), expected)
    assert len(graphs) == 1
    assert not computed


@torch.no_grad()
def test_modules_that_were_changed_are_used(computed):
    fast = fast_copy(small(depth=1))
    block = fast.blocks[0]
    x = torch.randn(1, 20, 128)
    plain = block(x)
    assert len(computed) == 1
    seen = []
    hook = block.attn.proj.register_forward_hook(lambda *_: seen.append(1))
    block(x)
    hook.remove()
    block.mlp.act = nn.ReLU()
    assert not torch.allclose(block(x), plain)
    block.mlp.act = nn.GELU()
    block.attn.qkv = nn.Sequential(block.attn.qkv)
    block(x)
    block(x, attn_mask=torch.ones(20, 20, dtype=torch.bool))
    assert len(computed) == 1
    assert seen == [1]


@torch.no_grad()
def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    fast = fast_copy(small())

    def fail(*_args):
        raise RuntimeError("no memory")

    monkeypatch.setattr(cpu, "_linear_gelu", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        fast(torch.randn(4, 96, 312))


@torch.no_grad()
def test_from_several_threads_at_once():
    net = small()
    fast = fast_copy(net)
    inputs = [torch.randn(2, 96, 312) for _ in range(4)]
    found = [None] * 4

    def work(i):
        with torch.inference_mode():
            found[i] = fast(inputs[i])[1]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for x, values in zip(inputs, found, strict=True):
        torch.testing.assert_close(values, net(x)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_that_was_forked_has_threads_of_its_own():
    before = torch.get_num_threads()
    cpu._pool(os.getpid(), 2)
    child = os.fork()
    if not child:
        done = cpu._pool(os.getpid(), 2).submit(lambda: 3).result(timeout=20)
        os._exit(0 if done == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.get_num_threads() == before


def test_other_machines(monkeypatch):
    monkeypatch.setattr(cpu.platform, "machine", lambda: "arm64")
    net = small()
    assert not cpu.speed_up(net)
    assert {type(block) for block in net.blocks} == {Block}


def test_parts():
    for length, size, at_least in ((1, 448, 1), (560, 448, 1), (1676, 448, 1), (1676, 512, 2)):
        parts = cpu._parts(length, size, at_least)
        rows = [i for part in parts for i in range(part.start, part.stop)]
        assert rows == list(range(-(-length // 32) * 32))
        sizes = {part.stop - part.start for part in parts}
        assert all(size % 32 == 0 for size in sizes)
        assert max(sizes) - min(sizes) in (0, 32)
        assert len(parts) % at_least == 0
    assert len(cpu._parts(1676, 448)) == 4
    assert len(cpu._parts(40, 1024, 3)) == 2  # no part without rows


@torch.no_grad()
def test_few_shapes_for_many_lengths(monkeypatch):
    """oneDNN keeps compiled code for each shape."""
    block = small(depth=1).blocks[0]
    shapes = set()
    product = cpu._product

    def spy(x, weight, bias=None):
        shapes.add((x.shape, weight.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(cpu, "_product", spy)
    for tokens in range(225, 257):
        cpu._compute(block, torch.randn(1, tokens, 128))
    assert len(shapes) == 3  # queries, keys and values; scores; what they mix


@torch.no_grad()
def test_new_memory_and_other_patches_leave_no_trace(monkeypatch):
    block = small(depth=1).blocks[0]
    x = torch.randn(3, 95, 128)
    expected = block(x)
    new = torch.empty

    def filled(*shape):
        return new(*shape).fill_(torch.nan)

    monkeypatch.setattr(cpu.torch, "empty", filled)
    torch.testing.assert_close(cpu._compute(block, x), expected, rtol=1e-5, atol=1e-5)
    x[1] = torch.nan
    found = cpu._compute(block, x)
    torch.testing.assert_close(found[::2], expected[::2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [2, 5])
@torch.no_grad()
def test_threads_of_the_pool_compute_alone(count):
    """However much they have computed; threads made later get the process's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        cpu._make_pool.cache_clear()
        pool = cpu._pool(os.getpid(), count)
        assert len(pool._threads) == count
        together = threading.Barrier(count)

        def compute():
            x = torch.randn(300, 300).softmax(-1)
            cpu._product(x, x)
            together.wait(20)  # each thread takes one
            return threading.get_ident(), torch.get_num_threads()

        found = dict(f.result() for f in [pool.submit(compute) for _ in range(count)])
        assert list(found.values()) == [1] * count
        assert torch.get_num_threads() == 3

        later = []

        def look():
            torch.randn(300, 300).softmax(-1)
            later.append(torch.get_num_threads())

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)


def test_no_more_threads_to_be_had(monkeypatch):
    class Full(cpu.ThreadPoolExecutor):
        def submit(self, *args):
            if self._threads:
                raise RuntimeError("can't start new thread")
            return super().submit(*args)

    monkeypatch.setattr(cpu, "ThreadPoolExecutor", Full)
    before, running = torch.get_num_threads(), set(threading.enumerate())
    cpu._make_pool.cache_clear()
    with pytest.raises(RuntimeError, match="new thread"):
        cpu._pool(os.getpid(), 3)
    for thread in set(threading.enumerate()) - running:
        thread.join(20)  # the one that waited for the others ends
        assert not thread.is_alive()
    assert torch.get_num_threads() == before


def test_the_ceiling_is_that_of_the_best_product():
    assert 1e9 < cpu.matmul_ceiling(0.01) < 1e15
