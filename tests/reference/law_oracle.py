"""The law as the paper writes it, in 50-digit complex arithmetic: slow, independent and obviously right.

Nothing here comes from `bayeslaw`. Arguments are natural logarithms, taken as the exact numbers their floats stand for.
"""

from __future__ import annotations

from mpmath import fabs, findroot, log, mp, mpc, mpf

DIGITS = 50


def error(log_eps_np: float, log_eps_up: float, gamma: float, log_p: float, log_density: float) -> mpf:
    """Compute equation (1), Rosenfeld et al. 2021: eps_np |(d - j p (eps_up / eps_np)^(1/gamma)) / (d - j p)|^gamma."""
    with mp.workdps(DIGITS):
        eps_np, eps_up, p, d = (mp.exp(mpf(value)) for value in (log_eps_np, log_eps_up, log_p, log_density))
        j = mpc(0, 1)
        ratio = (d - j * p * (eps_up / eps_np) ** (1 / mpf(gamma))) / (d - j * p)
        return eps_np * fabs(ratio) ** mpf(gamma)


def error_of_sharpness(
    log_eps_np: float, log_eps_up: float, gamma: float, log_p: float, sharpness: mpf, log_density: mpf
) -> mpf:
    """Compute the real form with a sharpness k in place of 2: eps_np ((d^k + A^k) / (d^k + p^k))^(gamma/k)."""
    with mp.workdps(DIGITS):
        eps_np, eps_up, p, d = (mp.exp(mpf(value)) for value in (log_eps_np, log_eps_up, log_p, log_density))
        outer = p * (eps_up / eps_np) ** (1 / mpf(gamma))
        return eps_np * ((d**sharpness + outer**sharpness) / (d**sharpness + p**sharpness)) ** (gamma / sharpness)


def joint_error(
    log_eps_np: float,
    log_eps_up: float,
    gamma: float,
    log_p_prime: float,
    log_depth: float,
    log_width: float,
    log_density: float,
    phi: float,
    psi: float,
) -> mpf:
    """Compute the joint form: equation (1) with m* = l^phi w^psi d for d, and p' for p."""
    with mp.workdps(DIGITS):
        depth, width, density = (mp.exp(mpf(value)) for value in (log_depth, log_width, log_density))
        m_star = depth ** mpf(phi) * width ** mpf(psi) * density
        return error(log_eps_np, log_eps_up, gamma, log_p_prime, mp.log(m_star))


def log_slope(log_eps_np: float, log_eps_up: float, gamma: float, log_p: float, log_density: float) -> mpf:
    """Differentiate log error by log density numerically, with digits to spare."""
    with mp.workdps(DIGITS):
        step = mpf(10) ** -15
        above, below = (
            log(error(log_eps_np, log_eps_up, gamma, log_p, mpf(log_density) + sign * step)) for sign in (1, -1)
        )
        return (above - below) / (2 * step)


def log_density_at(log_eps_np: float, log_eps_up: float, gamma: float, log_p: float, log_target: float) -> mpf:
    """Find the log density at which the error is the target, between the plateaus, by bracketed root finding."""
    with mp.workdps(DIGITS):

        def excess(log_density: mpf) -> mpf:
            return log(error(log_eps_np, log_eps_up, gamma, log_p, log_density)) - mpf(log_target)

        # The curve departs from a plateau by at least about (distance)^2, so the root lies at most this far out.
        reach = 100 + (mpf(log_eps_up) - mpf(log_eps_np)) / mpf(gamma)
        low, high = mpf(log_p) - reach, mpf(log_p) + reach
        rough = bisect_to(excess, low, high, mpf(10) ** -6)
        return findroot(excess, rough, solver="anderson", tol=mpf(10) ** -80, maxsteps=200, verify=False)


def bisect_to(function, low: mpf, high: mpf, width: mpf) -> tuple[mpf, mpf]:
    """Halve a bracket until it is narrower than `width`."""
    sign = mp.sign(function(low))
    while high - low > width:
        middle = (low + high) / 2
        if mp.sign(function(middle)) == sign:
            low = middle
        else:
            high = middle
    return low, high


def dense_error(
    log_a: float, alpha: float, log_b: float, beta: float, log_c: float, log_parameters: float, log_dataset_size: float
) -> mpf:
    """Compute e~ = a n^-alpha + b m^-beta + c of Rosenfeld et al. 2020, equation (4)."""
    with mp.workdps(DIGITS):
        a, b, c = (mp.exp(mpf(value)) for value in (log_a, log_b, log_c))
        m, n = mp.exp(mpf(log_parameters)), mp.exp(mpf(log_dataset_size))
        return a * n ** -mpf(alpha) + b * m ** -mpf(beta) + c


def saturated(dense: mpf, log_eps_up: float) -> mpf:
    """Compute eps_np = eps_0 | e~ / (e~ - j eta) | with eta = 1, Rosenfeld et al. 2020, equation (5)."""
    with mp.workdps(DIGITS):
        return mp.exp(mpf(log_eps_up)) * fabs(dense / (dense - mpc(0, 1)))
