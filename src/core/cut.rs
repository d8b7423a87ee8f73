//! A consistent cut: where the regions of a job can be put back to together.
//!
//! Each region makes checkpoints at epochs of its own, so the newest ones of all regions do not fit by themselves: a region that stands
//! where it has taken rows of an epoch that its upstream, put back, makes once more would count them twice. The rule, for each region and
//! each upstream of it:
//!
//! ```text
//! upstream U:  … e-1 ── e ┊ put back to e; it makes e+1 once more
//! region C:    has taken frames of U up to epoch c:   c ≤ e
//!              what lies between c and e is in the exchange, for C to read
//! ```
//! Where C has taken less, nothing is missing: the exchange holds it. So the rule bounds C from above only, and of two cuts that keep it,
//! taking the later point of each region keeps it, too: there is a latest cut, and going through the regions upstream first, each to its
//! latest point that fits, finds it.
//!
//! A region with groups stands at a checkpoint. One without can stand at any epoch whose record is there, and stands at the newest. To go
//! *back* to an epoch it is moved back afterwards, as far as nothing that the regions behind it have taken is made once more.
//!
//! What lies where, and what has been taken, is read elsewhere: this only decides.

use crate::ids::{Epoch, RegionId};
use std::collections::BTreeMap;
use std::fmt;

/// Where one region can be put back to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Has groups, which only checkpoints hold.
    pub stateful: bool,
    /// Ascending.
    pub epochs: Vec<Epoch>,
    /// The newest committed epoch, as far as that is known.
    pub newest: Option<Epoch>,
    /// Whose rows it takes; none: it reads a source.
    pub upstreams: Vec<RegionId>,
}

/// The largest epoch of an upstream (the last argument) of which a region has taken anything when it stands at an epoch. None: the log no
/// longer tells.
pub type Taken<'a> = dyn Fn(RegionId, Epoch, RegionId) -> Option<Epoch> + 'a;

/// Why there is no cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Nothing is left of it that is old enough, or nothing at all.
    Nothing(RegionId),
    /// Wherever the region can be put back to, it has taken more of `upstream`, which can't be put back to a later epoch than this.
    Ahead { region: RegionId, upstream: RegionId, epoch: Epoch },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::Nothing(region) => write!(f, "there is nothing that region {region} can be put back to"),
            Misfit::Ahead { region, upstream, epoch } => write!(
                f,
                "regions {region} and {upstream} do not fit together: {upstream} can be put back to epoch {epoch}, and wherever {region} can \
                 be, it has (or may have) taken later ones of it"
            ),
        }
    }
}

/// The latest cut; `to`: with no checkpoint of a later epoch than this. `regions` are in the order of their stages, upstream first.
pub fn choose(regions: &BTreeMap<RegionId, Candidates>, to: Option<Epoch>, taken: &Taken<'_>) -> Result<BTreeMap<RegionId, Epoch>, Misfit> {
    let mut chosen = BTreeMap::new();
    for (region, candidates) in regions {
        let is_old_enough = |epoch: &Epoch| !candidates.stateful || to.is_none_or(|to| *epoch <= to);
        let ahead = |epoch: Epoch| {
            let too_far = |upstream: &&RegionId| !is_made(regions, &chosen, **upstream, taken(*region, epoch, **upstream));
            candidates.upstreams.iter().find(too_far).copied()
        };
        let old_enough: Vec<Epoch> = candidates.epochs.iter().copied().filter(is_old_enough).collect();
        let Some(oldest) = old_enough.first() else { return Err(Misfit::Nothing(*region)) };
        let Some(epoch) = old_enough.iter().rev().find(|epoch| ahead(**epoch).is_none()) else {
            let upstream = ahead(*oldest).expect("no epoch fits, the oldest neither");
            return Err(Misfit::Ahead { region: *region, upstream, epoch: chosen.get(&upstream).copied().unwrap_or_default() });
        };
        chosen.insert(*region, *epoch);
    }
    match to {
        Some(to) => back_to(regions, chosen, to, taken),
        None => Ok(chosen),
    }
}

/// Whether an upstream that is put back to its chosen epoch has made all that was taken of it.
fn is_made(regions: &BTreeMap<RegionId, Candidates>, chosen: &BTreeMap<RegionId, Epoch>, upstream: RegionId, taken: Option<Epoch>) -> bool {
    let Some(epoch) = chosen.get(&upstream) else { return false };
    match taken {
        Some(taken) => taken <= *epoch,
        // Only what was committed can have been taken.
        None => regions[&upstream].newest.is_some_and(|newest| newest <= *epoch),
    }
}

/// Moves regions without groups back: to the last epoch up to `to`, or as far as those behind them allow.
fn back_to(
    regions: &BTreeMap<RegionId, Candidates>,
    mut chosen: BTreeMap<RegionId, Epoch>,
    to: Epoch,
    taken: &Taken<'_>,
) -> Result<BTreeMap<RegionId, Epoch>, Misfit> {
    for (region, candidates) in regions.iter().rev().filter(|(_, candidates)| !candidates.stateful) {
        let readers: Vec<RegionId> =
            regions.iter().filter(|(_, reader)| reader.upstreams.contains(region)).map(|(reader, _)| *reader).collect();
        let needed: Option<Vec<Epoch>> = readers.iter().map(|reader| taken(*reader, chosen[reader], *region)).collect();
        // Nobody can tell how much of it was taken: it stays at its newest epoch.
        let Some(needed) = needed else { continue };
        let wanted = candidates.epochs.iter().rev().find(|epoch| **epoch <= to).copied();
        if wanted.is_none() && readers.is_empty() {
            return Err(Misfit::Nothing(*region));
        }
        let earliest = needed.into_iter().chain(wanted).max().unwrap_or_default();
        let epoch = candidates.epochs.iter().find(|epoch| **epoch >= earliest).copied();
        let latest = chosen[region];
        chosen.insert(*region, epoch.map_or(latest, |epoch| epoch.min(latest)));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::StageId;

    fn region(stage: u32, partition: u32) -> RegionId {
        RegionId { stage: StageId(stage), partition }
    }

    fn candidates(stateful: bool, epochs: &[u64], upstreams: &[RegionId]) -> Candidates {
        let epochs: Vec<Epoch> = epochs.iter().copied().map(Epoch).collect();
        Candidates { stateful, newest: epochs.last().copied(), epochs, upstreams: upstreams.to_vec() }
    }

    /// What was taken: a region takes at its epoch `e` all of each upstream up to `e × 10`.
    fn tenfold(_: RegionId, epoch: Epoch, _: RegionId) -> Option<Epoch> {
        Some(Epoch(epoch.0 * 10))
    }

    fn chosen(regions: &BTreeMap<RegionId, Candidates>, to: Option<u64>, taken: &Taken<'_>) -> Result<Vec<u64>, Misfit> {
        choose(regions, to.map(Epoch), taken).map(|cut| cut.into_values().map(|epoch| epoch.0).collect())
    }

    #[test]
    fn a_source_stands_at_its_newest_epoch_and_a_region_behind_it_at_its_newest_checkpoint() {
        let sources = [region(0, 0), region(0, 1)];
        let regions = BTreeMap::from([
            (sources[0], candidates(false, &[1, 20, 50, 90], &[])),
            (sources[1], candidates(false, &[1, 30, 70], &[])),
            (region(1, 0), candidates(true, &[2, 5, 7], &sources)),
            (region(1, 1), candidates(true, &[3, 6], &sources)),
        ]);
        assert_eq!(chosen(&regions, None, &tenfold), Ok(vec![90, 70, 7, 6]));
    }

    #[test]
    fn to_go_back_moves_sources_as_far_as_what_was_taken_of_them_allows() {
        let sources = [region(0, 0), region(0, 1)];
        let regions = BTreeMap::from([
            (sources[0], candidates(false, &[1, 20, 50, 90], &[])),
            (sources[1], candidates(false, &[1, 30, 70], &[])),
            (region(1, 0), candidates(true, &[2, 5, 7], &sources)),
        ]);
        assert_eq!(chosen(&regions, Some(6), &tenfold), Ok(vec![50, 70, 5]), "up to epoch 50 was taken of both");
        assert_eq!(chosen(&regions, Some(4), &tenfold), Ok(vec![20, 30, 2]));
        assert_eq!(chosen(&regions, Some(1), &tenfold), Err(Misfit::Nothing(region(1, 0))));
    }

    #[test]
    fn a_source_that_goes_to_a_sink_goes_back_by_its_own_epochs() {
        let regions = BTreeMap::from([(region(0, 0), candidates(false, &[5, 20, 50], &[]))]);
        assert_eq!(chosen(&regions, None, &tenfold), Ok(vec![50]));
        assert_eq!(chosen(&regions, Some(49), &tenfold), Ok(vec![20]));
        assert_eq!(chosen(&regions, Some(4), &tenfold), Err(Misfit::Nothing(region(0, 0))));
    }

    #[test]
    fn in_three_stages_each_checkpoint_fits_the_one_before_it() {
        let (source, first, second) = (region(0, 0), region(1, 0), region(2, 0));
        let mut regions = BTreeMap::from([
            (source, candidates(false, &[1, 400], &[])),
            (first, candidates(true, &[11, 24, 38], &[source])),
            (second, candidates(true, &[1, 2, 3, 4], &[first])),
        ]);
        assert_eq!(chosen(&regions, None, &tenfold), Ok(vec![400, 38, 3]), "at its epoch 4 it has taken 40, which is made once more");
        assert_eq!(chosen(&regions, Some(30), &tenfold), Ok(vec![400, 24, 2]), "the record of an epoch from 240 on is the last one");
        regions.insert(second, candidates(true, &[4, 5], &[first]));
        assert_eq!(chosen(&regions, None, &tenfold), Err(Misfit::Ahead { region: second, upstream: first, epoch: Epoch(38) }));
    }

    #[test]
    fn a_filter_behind_an_exchange_stands_where_both_sides_fit() {
        let (source, window, filter, last) = (region(0, 0), region(1, 0), region(2, 0), region(3, 0));
        let records: Vec<u64> = (1..=300).collect();
        // The filter takes an epoch of the window region in each of its own; the last stage ten of the filter's.
        let taken = |region: RegionId, epoch: Epoch, _: RegionId| Some(if region == filter { epoch } else { Epoch(epoch.0 * 10) });
        let regions = BTreeMap::from([
            (source, candidates(false, &[1, 900], &[])),
            (window, candidates(true, &[60, 85], &[source])),
            (filter, candidates(false, &records, &[window])),
            (last, candidates(true, &[5, 8, 9], &[filter])),
        ]);
        assert_eq!(chosen(&regions, None, &taken), Ok(vec![900, 85, 85, 8]));
        assert_eq!(chosen(&regions, Some(7), &taken), Err(Misfit::Nothing(window)));
        assert_eq!(chosen(&regions, Some(80), &taken), Ok(vec![900, 60, 60, 5]));
    }

    #[test]
    fn what_the_log_no_longer_tells_is_at_most_what_was_committed() {
        let (source, first, second) = (region(0, 0), region(1, 0), region(2, 0));
        let unknown = |_: RegionId, _: Epoch, _: RegionId| None::<Epoch>;
        let mut regions = BTreeMap::from([
            (source, candidates(false, &[1, 400], &[])),
            (first, candidates(true, &[11, 38], &[source])),
            (second, candidates(true, &[4], &[first])),
        ]);
        assert_eq!(chosen(&regions, None, &unknown), Ok(vec![400, 38, 4]));
        assert_eq!(chosen(&regions, Some(20), &unknown), Err(Misfit::Ahead { region: second, upstream: first, epoch: Epoch(11) }));
        regions.remove(&second);
        assert_eq!(chosen(&regions, Some(20), &unknown), Ok(vec![400, 11]), "a source stays where everything was made");
        let newer = Candidates { newest: Some(Epoch(39)), ..candidates(true, &[11, 38], &[source]) };
        regions.extend([(first, newer), (second, candidates(true, &[4], &[first]))]);
        assert!(chosen(&regions, None, &unknown).is_err(), "it has committed more than its checkpoint holds");
    }
}
