//! Sharing bandwidth fairly among several moves.

/// Divides `total` so that nobody gets more than they want, and nobody could get more without somebody who has less
/// getting even less (max-min fairness). `None` wants everything.
#[must_use]
pub fn fair_shares(total: u64, wanted: &[Option<u64>]) -> Vec<u64> {
    let mut shares = vec![0; wanted.len()];
    let mut modest: Vec<usize> = (0..wanted.len()).collect();
    modest.sort_by_key(|&index| wanted[index].unwrap_or(u64::MAX));
    let mut left = total;
    for (position, &index) in modest.iter().enumerate() {
        let equal = left / (modest.len() - position) as u64;
        shares[index] = wanted[index].map_or(equal, |wanted| wanted.min(equal));
        left -= shares[index];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_modest_leave_goes_to_the_others() {
        assert_eq!(fair_shares(900, &[None, Some(100), None]), [400, 100, 400]);
        assert_eq!(fair_shares(900, &[Some(500), Some(1000)]), [450, 450]);
        assert_eq!(fair_shares(900, &[Some(100)]), [100]);
        assert_eq!(fair_shares(900, &[]), [0u64; 0]);
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_they_want_and_nothing_is_wasted(
            total in 0u64..1 << 40, wanted in proptest::collection::vec(proptest::option::of(0u64..1 << 40), 0..9)
        ) {
            let shares = fair_shares(total, &wanted);
            prop_assert!(shares.iter().sum::<u64>() <= total);
            for (share, wanted) in shares.iter().zip(&wanted) {
                prop_assert!(wanted.is_none_or(|wanted| *share <= wanted));
            }
            let unsatisfied = shares.iter().zip(&wanted).any(|(share, wanted)| wanted.is_none_or(|wanted| *share < wanted));
            let wasted = total - shares.iter().sum::<u64>();
            prop_assert!(!unsatisfied || wasted < wanted.len() as u64);
        }
    }
}
