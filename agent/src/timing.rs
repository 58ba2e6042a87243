//! Every constant of time of the agent, in one table (DESIGN section 5). raft's own are in `raft_store::timing`.
//!
//! Decides the numbers; nothing else may spell a duration that another machine can notice.

use std::time::Duration;

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// How often a random member is probed by gossip.
pub const GOSSIP_PROBE_PERIOD: Duration = ms(250);
/// How long a direct gossip probe may take before others are asked to probe.
pub const GOSSIP_PROBE_RTT: Duration = ms(100);
/// How long a suspected member has to refute before gossip calls it down.
pub const GOSSIP_SUSPECT_TO_DOWN: Duration = ms(2_000);
/// How often gossip hears who the members are, and announces itself to those it has not met.
pub const GOSSIP_MEMBERS: Duration = ms(1_000);
/// Announcements, one a second, that a member may leave unanswered before it is suspected without ever having been met.
pub const GOSSIP_UNANSWERED: u32 = 4;
/// How often members exchange everything they know over a stream.
pub const GOSSIP_EXCHANGE: Duration = ms(10_000);
/// Distance of the direct probes by which a death is decided.
pub const DEATH_PROBE_INTERVAL: Duration = ms(100);
/// Silence to direct probes that makes a death.
pub const DEATH_SILENCE: Duration = ms(800);
/// Deaths within this window count for the brake.
pub const BRAKE_WINDOW: Duration = ms(60_000);
/// With nothing changing for this long the brake lets go.
pub const BRAKE_RELEASE: Duration = ms(300_000);
/// How long a request of a client waits for a leader.
pub const REQUEST_DEADLINE: Duration = ms(3_000);
/// Wait between two tries of a forwarded command.
pub const RETRY_PAUSE: Duration = ms(50);
/// How long a dial to a member may take.
pub const DIAL_TIMEOUT: Duration = ms(1_000);
/// Connections of a pair that came into being within this of each other were dialled at once by both.
pub const SIMULTANEOUS_DIALS: Duration = ms(1_000);
/// A surplus connection on which nothing new came in for this long is no longer read.
pub const SURPLUS_DRAIN: Duration = ms(10_000);
/// How long a machine that is not (yet) known as a member may take to say who it is and what it wants.
pub const STRANGER: Duration = ms(5_000);
/// How long the answer to a join may take: several writes through the leader.
pub const JOIN_ANSWER: Duration = ms(20_000);
/// How long a snapshot may be under way to another member.
pub const SNAPSHOT_TRANSFER: Duration = ms(120_000);
/// A connection without any answer for this long is gone.
pub const MESH_IDLE: Duration = ms(3_000);
/// Distance of keep-alives on connections in use.
pub const MESH_KEEP_ALIVE: Duration = ms(1_400);
/// How long the end of the mesh waits for the others to have heard of it.
pub const MESH_GOODBYE: Duration = ms(500);
/// How long the others must refuse this machine's key until it says that it was removed: a new member's key reaches them within less.
pub const REFUSED: Duration = ms(5_000);
/// Distance of looks at a port that is taken.
pub const MESH_PORT_PAUSE: Duration = ms(25);
/// Distance of tries to open this boot's session: a leader whose disk is full refuses at once.
pub const SESSION_PAUSE: Duration = ms(500);
/// How long one request between members may take.
pub const MESH_REQUEST: Duration = ms(2_000);
/// How long the leader is asked for what only it can do: a signature, letting a machine in.
pub const LEADER_ANSWER: Duration = ms(10_000);
/// How long a machine that votes no longer keeps its wrap of the keyring: a promotion that is put off is no demotion.
pub const WRAP_KEPT: Duration = ms(5_000);
/// How long a member's certificate lasts, unless the machine that signs was told otherwise.
pub const CERTIFICATE_LIFETIME: Duration = ms(7 * 86_400_000);
/// Silence on a watch after which a bookmark is sent.
pub const BOOKMARK: Duration = ms(60_000);
/// An agent tells that it runs this often.
pub const TELL_LIFE: Duration = ms(2_000);
/// A leader listens for so long whether another machine runs as the member that wants another key: words that are late, and two more.
pub const HEAR_OF_DOUBLES: Duration = ms(7_000);
/// For so long a machine whose store cannot be trusted looks for a leader, without a word from one.
pub const TAKEN_BACK: Duration = ms(30_000);
/// A leader compares the replicas' states this often.
pub const COMPARE_STATES: Duration = ms(60_000);
/// How long a watch lasts unless the client says otherwise.
pub const WATCH_TIMEOUT: Duration = ms(1_800_000);
/// How long an event is kept after it last happened, as Kubernetes does.
pub const EVENT_LIFETIME: Duration = ms(3_600_000);
/// How long a join token can be used.
pub const TOKEN_LIFETIME: Duration = ms(3_600_000);
