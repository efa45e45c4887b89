"""`fedsr privacy`: the privacy that noise and rounds add up to."""

from __future__ import annotations


def privacy(
    noise: float | None = None,
    noise_sa: float | None = None,
    epsilon: float | None = None,
    rounds: int = 20,
    sites: int = 1,
    delta: float = 1e-5,
    run: str | None = None,
) -> None:
    """Print the differential privacy of a site for given noise and rounds, or the noise that a given epsilon needs.

    The protected unit is a site: everything that its results depend on may be replaced by anything else. The clip norm
    decides how much noise a result gets, not how private it is. docs/security.md says what is not covered.

    Args:
        noise: noise on the encoder, in units of the clip norm
        noise_sa: noise on the SA features; by default the same as on the encoder
        epsilon: epsilon of encoder and SA features together, for which the noise is computed
        rounds: number of results that the site sends
        sites: number of sites; if more than one, also print the epsilon against another site that only receives their
            plain means
        delta: probability that epsilon does not cover
        run: folder of a run from which to read noise and number of results; prints one line per site

    Example:
        fedsr privacy --noise 2 --rounds 20
        fedsr privacy --epsilon 8 --rounds 20
    """
    from fedsr_monai.errors import UserError
    from fedsr_monai.federation import privacy as account

    if sum(value is not None for value in (noise, epsilon, run)) != 1:
        raise UserError("fedsr privacy", "none or several of them", "one of --noise, --epsilon and --run")

    def line(who: str, z: float, z_sa: float, results: int) -> str:
        parts = {"encoder": z, "SA features": z_sa, "both": account.joint_noise(z, z_sa)}
        values = (f"{name} {account.epsilon(value, results, delta):.3g}" for name, value in parts.items())
        return f"{who}: {', '.join(values)}"

    print(f"epsilon of one site at delta {delta:g}, against")
    if run is not None:
        for name, of_site, results in account.read_ledgers(run):
            print(line(f"everybody, site {name}, {results} results", of_site.noise, of_site.noise_sa, results))
        return
    if epsilon is not None:
        noise = account.noise_for(epsilon, rounds, delta, parts=2)
        print(
            f"(noise={noise:.4g} noise_sa={noise:.4g}; {account.noise_for(epsilon, rounds, delta):.4g} where one of them is sent)"
        )
    assert noise is not None  # one of the three is given
    noise_sa = noise if noise_sa is None else noise_sa
    print(line(f"everybody, after {rounds} rounds", noise, noise_sa, rounds))
    if sites > 1:
        mean = account.epsilon(noise, rounds, delta, sites)
        print(f"another of {sites} sites, if it sees plain means of all only: encoder {mean:.3g}")
