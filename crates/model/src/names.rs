//! Names of what we make on the host. They carry the job, so that anyone can find and remove what belongs to it.
//!
//! A guest's id is its job's id and one more character, the slot. systemd places `a-b.slice` below `a.slice`, hence the
//! slices of jobs are named so that all of them lie below [`GUESTS_SLICE`].

use std::fmt;

/// The slice that holds every guest of every job.
pub const GUESTS_SLICE: &str = "runner-guests.slice";

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const JOB_LENGTH: usize = 4;

/// One job of one runner: four characters out of `0-9a-z`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(String);

impl JobId {
    /// An id out of random bits. The caller makes sure that it is not in use.
    pub fn from_random(bits: u32) -> Self {
        let mut rest = bits;
        let name = (0..JOB_LENGTH)
            .map(|_| {
                let digit = rest % 36;
                rest /= 36;
                char::from(DIGITS[usize::try_from(digit).expect("below 36")])
            })
            .collect();
        Self(name)
    }

    /// Reads an id; `None` if the text is not one.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == JOB_LENGTH && text.bytes().all(|byte| DIGITS.contains(&byte))).then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The slice of this job.
    pub fn slice(&self) -> String {
        format!("runner-guests-{}.slice", self.0)
    }

    /// The guest in a slot below [`GuestId::SLOTS`].
    pub fn guest(&self, slot: u8) -> Option<GuestId> {
        let digit = DIGITS.get(usize::from(slot))?;
        Some(GuestId { job: self.clone(), slot: char::from(*digit) })
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// One guest: its job and its slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestId {
    job: JobId,
    slot: char,
}

impl GuestId {
    /// How many guests a job can have at a time.
    pub const SLOTS: u8 = 36;

    /// Reads an id; `None` if the text is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (job, slot) = text.split_at_checked(JOB_LENGTH)?;
        let mut slot = slot.bytes();
        let digit = slot.next().filter(|byte| DIGITS.contains(byte))?;
        slot.next().is_none().then_some(())?;
        Some(Self { job: JobId::parse(job)?, slot: char::from(digit) })
    }

    /// The job it belongs to.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// The machine's name for machinectl(1): 12 characters, the most that network device names made from it can hold.
    pub fn machine(&self) -> String {
        format!("runner-{self}")
    }

    /// The guest's unit on the host.
    pub fn unit(&self) -> String {
        format!("runner-guest-{self}.service")
    }

    /// The guest a machine is.
    pub fn from_machine(machine: &str) -> Option<Self> {
        Self::parse(machine.strip_prefix("runner-")?)
    }

    /// The guest a unit on the host belongs to.
    pub fn from_unit(unit: &str) -> Option<Self> {
        Self::parse(unit.strip_prefix("runner-guest-")?.strip_suffix(".service")?)
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.job, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_job_and_its_guests() {
        let job = JobId::from_random(0);
        assert_eq!(job.as_str(), "0000");
        assert_eq!(job.slice(), "runner-guests-0000.slice");
        let guest = job.guest(35).expect("the last slot");
        assert_eq!(guest.machine(), "runner-0000z");
        assert_eq!(guest.machine().len(), 12);
        assert_eq!(guest.unit(), "runner-guest-0000z.service");
        assert_eq!(GuestId::from_unit(&guest.unit()), Some(guest));
        assert_eq!(GuestId::from_machine("runner-0000z"), job.guest(35));
        assert_eq!(GuestId::from_machine("runner-lab-trixie"), None);
        assert_eq!(job.guest(GuestId::SLOTS), None);
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in ["", "abc", "abcde", "ABCD", "ab-d", "ab/d", "äbc"] {
            assert_eq!(JobId::parse(text), None, "{text}");
        }
        for text in ["", "abcd", "abcdef", "abcd-", "abcdé", "ab.de"] {
            assert_eq!(GuestId::parse(text), None, "{text}");
        }
        for unit in ["runner-guestd.service", "runner-guest-abcde.scope", "x-runner-guest-abcde.service"] {
            assert_eq!(GuestId::from_unit(unit), None, "{unit}");
        }
    }

    #[test]
    fn every_random_number_is_an_id() {
        for bits in [1, 35, 36, 1_679_615, 1_679_616, u32::MAX] {
            let job = JobId::from_random(bits);
            assert_eq!(JobId::parse(job.as_str()), Some(job));
        }
    }
}
