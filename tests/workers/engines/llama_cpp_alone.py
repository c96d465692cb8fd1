"""One sequence at a time on llama.cpp: what our engine gives, and what llama.cpp itself draws."""

from tiny_gguf import CONTEXT

from queueserve.protocol import Sampling
from workers.engines import llama_cpp_requests as requests
from workers.engines.base import Sequence
from workers.engines.gguf_header import read_header
from workers.engines.grammar import Grammars
from workers.engines.llama_cpp_generation import Generation
from workers.engines.llama_cpp_server import LlamaServer
from workers.engines.llama_cpp_vocabulary import Vocabulary


class Model:
    """A tiny model, loaded into a server of its own with one slot."""

    def __init__(self, path):
        header = read_header(path)
        self.vocabulary = Vocabulary.read(header)
        own = {"slots": 1, "context": CONTEXT, "threads": 1, "gpu_layers": 0}
        self.server = LlamaServer(path, header, **own)
        self.size = len(self.vocabulary.pieces)

    def only(self, *pieces):
        """A bias that leaves nothing but these bytes to draw, whatever tokens they are."""
        left = [token for token, own in enumerate(self.vocabulary.pieces) if own in pieces]
        return {token: 0.0 if token in left else -1000.0 for token in range(self.size)}

    def generate(self, prompt, generated=(), constraint=None, **sampling):
        """The outputs of one sequence."""
        sequence = Sequence(
            id="s",
            prompt=prompt,
            generated=generated,
            sampling=Sampling(**sampling),
            constraint=constraint,
        )
        outputs = []
        generation = Generation(
            sequence,
            slot=0,
            limit=sampling["max_tokens"],
            server=self.server,
            vocabulary=self.vocabulary,
            grammars=Grammars(lambda: self.vocabulary.pieces, self.server.ends),
            emit=lambda output, more=False: output and outputs.append(output),
            rest=lambda: None,
            cancelled=lambda: False,
        )
        generation.run()
        assert [output.finish for output in outputs[:-1]] == [None] * (len(outputs) - 1)
        assert outputs[-1].finish
        assert generation.tokens == [*generated, *tokens_of(outputs)]
        return outputs

    def truth(self, prompt, **sampling):
        """The tokens of the same draws by llama.cpp, in one request that is not streamed."""
        sequence = Sequence(id="s", prompt=prompt, sampling=Sampling(**sampling))
        request = requests.draw(
            sequence, [], slot=0, count=sampling["max_tokens"], banned=(), stream=False
        )
        return self.server.answer(request).tokens


def tokens_of(outputs):
    return [token for output in outputs for token in output.tokens]
