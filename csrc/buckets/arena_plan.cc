#include "buckets/arena_plan.h"

#include "common/clock.h"
#include "kernels/kernels.h"

namespace ringreduce {

struct ArenaPlan::Shared {
  Counter arrived, finished;
};

namespace {

struct Layout {
  size_t shared, launched, reduced, data, stride, total;
};

Layout layout(int local_size, const std::vector<BucketSpec>& buckets) {
  Layout at{};
  at.launched = round_up(buckets.size() * 2 * sizeof(Counter), kLine);
  at.reduced = at.launched + local_size * round_up(buckets.size() * 8, kLine);
  at.data = round_up(at.reduced + local_size * round_up(buckets.size() * 8, kLine), 4096);
  for (const BucketSpec& bucket : buckets) at.stride += round_up(bucket.bytes(), kLine);
  at.stride = round_up(at.stride, 4096);
  at.total = at.data + local_size * ArenaPlan::kSides * at.stride;
  return at;
}

}  // namespace

size_t ArenaPlan::segment_bytes(int local_size, const std::vector<BucketSpec>& buckets) {
  return layout(local_size, buckets).total;
}

size_t ArenaPlan::reserved_bytes(int local_size, const std::vector<BucketSpec>& buckets) {
  const Layout at = layout(local_size, buckets);
  return at.data + local_size * at.stride;
}

Status ArenaPlan::reserve(int bucket, int side) const {
  return segment_->reserve(buffer(bucket, side) - segment_->data(), bytes(bucket));
}

ArenaPlan::ArenaPlan(const Topology& topology, const std::vector<BucketSpec>& buckets, Reduction reduction, Scale scale,
                     std::shared_ptr<Segment> segment, Net* net, Bell* bell, PlanId id, std::shared_ptr<Departures> departures)
    : Plan(id, topology.world, buckets.size()), topology_(topology), reduction_(reduction), scale_(scale),
      segment_(std::move(segment)), bell_(bell), one_host_(topology.host_count() == 1), departures_(std::move(departures)) {
  const int locals = topology_.local_size(), local = topology_.local();
  weight_ = local == 0 ? locals - reducers() + 1 : local < reducers() ? 1 : 0;
  channel_.topology = &topology_;
  channel_.first_tag = PlanChannel::slot(id.channel) * Channel::kTags;
  const Layout at = layout(locals, buckets);
  stride_ = at.stride;
  shared_ = reinterpret_cast<Shared*>(segment_->data());
  launched_ = reinterpret_cast<std::atomic<uint64_t>*>(segment_->data() + at.launched);
  reduced_ = reinterpret_cast<std::atomic<uint64_t>*>(segment_->data() + at.reduced);
  data_ = segment_->data() + at.data;
  size_t offset = 0;
  for (const BucketSpec& spec : buckets) {
    Bucket bucket;
    bucket.offset = offset;
    bucket.bytes = spec.bytes();
    bucket.dtype = spec.dtype;
    if (weight_) bucket.own = slice(bucket.bytes, reducers(), local);
    buckets_.push_back(bucket);
    offset += round_up(bucket.bytes, kLine);
  }
  sources_.resize(locals);
  targets_.resize(locals);
  if (one_host_ || !weight_) return;
  net_ = std::make_shared<PlanNet>(net, peers(), channel_.first_tag, channel_.tag(Channel::kLastWords), largest_message());
  channel_.net = net_.get();
}

std::vector<int> ArenaPlan::peers() const {
  std::vector<int> ranks;
  for (int host = 0; host < topology_.host_count(); ++host)
    if (host != topology_.host()) ranks.push_back(channel_.world(topology_.counterpart(host, topology_.local())));
  return ranks;
}

size_t ArenaPlan::largest_message() const {
  size_t most = 0;
  for (const Bucket& bucket : buckets_) most = std::max(most, std::min(bucket.bytes, portion_limit()));
  return std::max(HostReduce::kDoublingBytes, divide_up(most, topology_.host_count()) + kLine);
}

char* ArenaPlan::data(int bucket, int local) const {
  return data(bucket, local, static_cast<int>(of(launched_, local, bucket).load(std::memory_order_relaxed) % kSides));
}

Status ArenaPlan::launch(int index, Where where) {
  if (!complete(index)) return in_flight(index);
  Bucket& bucket = buckets_[index];
  ++bucket.launches;
  bucket.side = where.side;
  count_launch(index);
  bucket.next = bucket.own.begin;
  queue_.push_back(index);
  // Ordered before the arrival, behind which the peers read it.
  of(launched_, topology_.local(), index).store(bucket.launches * kSides + bucket.side, std::memory_order_relaxed);
  const uint64_t now = shared_[index].arrived.value.fetch_add(1, std::memory_order_acq_rel) + 1;
  if (now == bucket.launches * topology_.local_size()) bell_->ring();
  return Status::ok();
}

bool ArenaPlan::arrived(int index) const {
  return shared_[index].arrived.value.load(std::memory_order_acquire) >= buckets_[index].launches * topology_.local_size();
}

bool ArenaPlan::complete(int index) const {
  return shared_[index].finished.value.load(std::memory_order_acquire) >= buckets_[index].launches * topology_.local_size();
}

int ArenaPlan::first_open() const {
  for (int i = 0; left_.is_ok() && i < bucket_count(); ++i)
    if (!complete(i)) return i;
  return -1;
}

uint64_t ArenaPlan::over() const {
  uint64_t count = launches_;
  for (int i = 0; i < bucket_count(); ++i)
    if (!complete(i)) count = std::min(count, ordinal(i) - 1);
  return count;
}

// The buffers of a portion that is given up stay as they are: messages are still on their way to them. Its place is
// not wanted any more, as portions are begun in order.
Status ArenaPlan::drop_lost() {
  channel_.sends->lift();
  queue_.erase(std::remove_if(queue_.begin(), queue_.end(), [this](int bucket) { return lost(bucket); }), queue_.end());
  for (Portion& portion : portions_) {
    if (portion.bucket < 0 || !lost(portion.bucket)) continue;
    portion.bucket = -1;
    --in_flight_;
  }
  return drain_if_over();
}

Status ArenaPlan::drain_if_over() {
  if (left_.is_ok() || !idle() || !net_ || net_->left()) return Status::ok();
  return net_->leave();
}

// Whoever left may write its bucket again.
bool ArenaPlan::given_up(int index) const {
  return lost(index) || ordinal(index) > departures_->unaffected(id_.channel);
}

Status ArenaPlan::advance(bool* moved) {
  bool stepped = false;
  if (in_flight_) RR_TRY(exchange(&stepped));
  if (!queue_.empty()) RR_TRY(start_portion(&stepped));
  if (stepped) moved_ns_ = now_ns();
  *moved = *moved || stepped;
  return drain_if_over();
}

Status ArenaPlan::start_portion(bool* moved) {
  const int index = queue_.front();
  Bucket& bucket = buckets_[index];
  if (!arrived(index)) return Status::ok();
  Portion& slot = portions_[started_ % kInFlight];
  if (slot.bucket >= 0) return Status::ok();
  *moved = true;
  if (bucket.next < bucket.own.end) {
    const Range range{bucket.next, std::min(bucket.next + portion_limit(), bucket.own.end)};
    bucket.next = range.end;
    reduce_local(index, range);
    if (given_up(index)) return Status::ok();
    if (!one_host_) {
      slot.bucket = index;
      slot.range = range;
      slot.exchange.start(channel_, channel_.tag(static_cast<int>(started_ % kInFlight)),
                          {buffer(index) + range.begin, range.bytes(), bucket.dtype, reduction_, scale_.post});
      ++started_;
      ++bucket.in_flight;
      ++in_flight_;
    }
  }
  if (bucket.next >= bucket.own.end) {
    queue_.pop_front();
    finish_if_done(index);
  }
  return Status::ok();
}

// On one host into every bucket at once; with several, into this rank's, to travel from there.
void ArenaPlan::reduce_local(int index, Range range) {
  const int n = topology_.local_size();
  for (int i = 0; i < n; ++i) targets_[i] = data(index, i) + range.begin;
  for (int i = 0; i < n; ++i) sources_[i] = targets_[i];
  ReduceArgs args{targets_.data(), n, sources_.data(), n, range.bytes() / info(buckets_[index].dtype).size, scale_};
  void* own = buffer(index) + range.begin;
  if (!one_host_) {
    args.dst = &own;
    args.dst_count = 1;
    args.scale.post = 1.0;
  }
  if (n > 1 || !args.scale.is_identity()) reduce(buckets_[index].dtype, reduction_, args);
}

Status ArenaPlan::exchange(bool* moved) {
  for (Portion& portion : portions_) {
    if (portion.bucket < 0) continue;
    RR_TRY(portion.exchange.advance(moved));
    if (portion.exchange.busy()) continue;
    const int index = portion.bucket;
    publish(index, portion.range);
    portion.bucket = -1;
    --buckets_[index].in_flight;
    --in_flight_;
    finish_if_done(index);
  }
  return Status::ok();
}

void ArenaPlan::publish(int index, Range range) {
  for (int i = 0; i < topology_.local_size(); ++i)
    if (i != topology_.local()) copy(data(index, i) + range.begin, buffer(index) + range.begin, range.bytes());
}

void ArenaPlan::finish_if_done(int index) {
  const Bucket& bucket = buckets_[index];
  if (bucket.in_flight || bucket.next < bucket.own.end || !weight_ || given_up(index)) return;
  of(reduced_, topology_.local(), index).store(bucket.launches, std::memory_order_relaxed);
  const uint64_t now = shared_[index].finished.value.fetch_add(weight_, std::memory_order_acq_rel) + weight_;
  if (now == bucket.launches * topology_.local_size()) bell_->ring();
}

// Of the first `ranks` of this host, as local indices: who has counted less than this rank's launches.
std::vector<int> ArenaPlan::behind(std::atomic<uint64_t>* counts, int ranks, int index, uint64_t unit) const {
  std::vector<int> locals;
  for (int i = 0; i < ranks; ++i)
    if (of(counts, i, index).load(std::memory_order_relaxed) / unit < buckets_[index].launches) locals.push_back(i);
  return locals;
}

std::vector<int> ArenaPlan::missing_ranks(int index) const {
  std::vector<int> locals = behind(launched_, topology_.local_size(), index, kSides);
  if (locals.empty() && one_host_) locals = behind(reduced_, reducers(), index, 1);
  for (int& at : locals) at = channel_.world(topology_.local_ranks()[at]);
  return locals;
}

std::string ArenaPlan::missing(int index) const {
  const std::string bucket = "bucket " + std::to_string(index);
  const auto world = [this](int local) { return channel_.world(topology_.local_ranks()[local]); };
  std::string text;
  for (int i : behind(launched_, topology_.local_size(), index, kSides))
    text += (text.empty() ? "rank " : ", rank ") + std::to_string(world(i)) + " has launched " + bucket + " " +
            std::to_string(of(launched_, i, index).load(std::memory_order_relaxed) / kSides) + " times, this rank " +
            std::to_string(buckets_[index].launches) + " times";
  if (!text.empty()) return text;
  std::vector<int> ranks = behind(reduced_, reducers(), index, 1), others;
  for (int& at : ranks) at = world(at);
  text = "every rank of this host has launched " + bucket;
  if (ranks.empty()) return text;
  if (one_host_) return text + ", " + show_ranks(ranks) + (ranks.size() == 1 ? " has" : " have") + " not reduced a part of it";
  for (int rank = 0; rank < topology_.size; ++rank)
    if (topology_.host_of[rank] != topology_.host()) others.push_back(channel_.world(rank));
  return text + "; some of " + show_ranks(others) + " on other hosts have not sent theirs";
}

}  // namespace ringreduce
