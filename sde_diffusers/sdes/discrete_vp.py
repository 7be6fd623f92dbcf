"""The VP SDE through a table of betas, for networks of DDPM and diffusers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusers.sdes.gaussian import GaussianSDE, Time

ROUNDING = 1e-9  # of t N at the points of the table, where the interval is the one below


def linear_beta_table(n: int = 1000) -> Tensor:
    """The beta table of DDPM (arXiv 2006.11239, section 4): linear from 1e-4 to 0.02."""
    return torch.linspace(1e-4, 0.02, n, dtype=torch.float64)


class DiscreteVPSDE(GaussianSDE):
    """The VP SDE that passes through a DDPM beta table: log(alpha) is piecewise linear through t_k = (k + 1) / N.

    So f = -beta/2 and g^2 = beta with beta constant on each interval, and the chain's kernels are met exactly.

    Args:
        betas: (N,) with N of at least 2, the table beta_0..beta_{N-1}, as in a DDPM scheduler's `betas`; None = DDPM's
            own linear one.

    Raises:
        ValueError: unless every beta lies in (0, 1) (a table with terminal SNR 0 has a last beta of 1).
    """

    name = "vp_discrete"
    title = "VP SDE of a DDPM's table"
    time_input = "index"
    prior_sigma = 1.0
    smooth = False
    of_the_paper = True

    def __init__(self, betas: Sequence[float] | Tensor | None = None):
        try:
            table = torch.as_tensor(linear_beta_table() if betas is None else betas, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`betas` must hold numbers strictly between 0 and 1, but is {betas!r}.") from error
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"`betas` must be a list of at least 2 numbers, but has the shape {tuple(table.shape)}.")
        if bad := table[~((table > 0) & (table < 1))].tolist():
            raise ValueError(f"`betas` must hold numbers strictly between 0 and 1, but holds {bad}.")
        n = len(table)
        self.num_betas = n
        self.smallest_time = 1 / n
        self.sampling_eps = max(1e-3, 1 / n)
        self._betas = table
        self._log_alphas = torch.cat([torch.zeros(1, dtype=torch.float64), 0.5 * torch.log1p(-table).cumsum(0)])

    @property
    def betas(self) -> Tensor:
        """(N,) float64, the table."""
        return self._betas

    def _interval(self, t: Tensor) -> Tensor:
        return (t * self.num_betas - ROUNDING).ceil().long().clamp(1, self.num_betas)

    def log_alpha(self, t: Time):
        k = self._interval(t)
        lower, upper = self._log_alphas.to(t.device)[k - 1], self._log_alphas.to(t.device)[k]
        return lower + (upper - lower) * (t * self.num_betas - (k - 1))

    def sigma(self, t: Time):
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def drift(self, t: Time):
        return (self._log_alphas.diff() * self.num_betas).to(t.device)[self._interval(t) - 1]

    def diffusion(self, t: Time):
        return (-2 * self.drift(t)).sqrt()

    def inverse_half_log_snr(self, half_log_snr: Time):
        log_alpha = 0.5 * torch.nn.functional.logsigmoid(2 * half_log_snr)
        table = self._log_alphas.to(log_alpha.device)
        k = torch.searchsorted(-table, -log_alpha.contiguous()).clamp(1, self.num_betas)
        return (k - 1 + (log_alpha - table[k - 1]) / (table[k] - table[k - 1])) / self.num_betas

    def paper_chain(self, times: Tensor):
        """Through the whole table the chain is DDPM's, whose ancestral sampler adds sqrt(beta_i), as in `VPSDE`;
        through fewer times the exact transitions stand, with the noise of the exact posterior."""
        chain = self.chain(times)
        table = torch.linspace(1, self.smallest_time, len(times), dtype=torch.float64)
        whole = len(times) == self.num_betas and torch.allclose(times, table, rtol=0, atol=1e-9)
        return chain._replace(posterior_noise=chain.b) if whole else chain
