-- A worker's life: register, heartbeat, drain.

-- After a time in which nobody could reach Redis, every lease is extended once before anything is reaped:
-- the silence was Redis's, not theirs.
local function touch(root, time, timeout)
  local state = key(root, 'state')
  local seen = tonumber(redis.call('HGET', state, 'seen') or time)
  if time - seen > timeout / 2 then
    for _, set in ipairs({ key(root, 'alive'), key(root, 'apis') }) do
      for _, member in ipairs(redis.call('ZRANGE', set, 0, -1)) do
        redis.call('ZADD', set, 'GT', time + timeout, member)
      end
    end
  end
  redis.call('HSET', state, 'seen', time)
  redis.call('PEXPIRE', state, 7 * DAY_MS)
end

-- Measured rates differ by noise; a worker within a fifth of the best one is as good as the best.
local function relative_speed(root, rate)
  local state = key(root, 'state')
  local best = math.max(rate, tonumber(redis.call('HGET', state, 'best') or 0) * 0.99)
  redis.call('HSET', state, 'best', string.format('%.3f', best))
  local speed = rate / best
  return speed >= 0.8 and 1 or math.max(0.1, math.floor(speed * 10 + 0.5) / 10)
end

-- qs_register: a ready worker joins. Twice is once.
--   KEYS root    ARGV worker, timeout_us, slots, speed, field, value, …   (the rest is for people)
--   returns 'ok'
local function register(keys, args)
  local root, worker, time = keys[1], args[1], now()
  local timeout = tonumber(args[2])
  local registration = key(root, 'worker', worker)
  touch(root, time, timeout)
  redis.call('HSET', registration, 'slots', args[3], 'speed', args[4], 'running', 0, 'turn', 0,
    'state', 'ready', unpack(args, 5))
  redis.call('PEXPIRE', registration, math.ceil(timeout / 1000))
  redis.call('ZADD', key(root, 'alive'), time + timeout, worker)
  offer(root, worker, time)
  dispatch(root, time)
  return 'ok'
end

-- qs_heartbeat: renew a registration, and hear what this worker holds.
--   KEYS root    ARGV worker, timeout_us, steps, rate (tokens/s of one sequence; 0: keep the speed)
--   returns { verdict, snapshot, job, lease, job, lease, … }
--     verdict: ok | register (the registration has expired, the leases have not) | gone (its jobs went elsewhere)
--     snapshot: the pool's last epoch; a job that is absent here although its epoch is not above was taken away
--     lease: "epoch" or "epoch cancel"
local function heartbeat(keys, args)
  local root, worker, time = keys[1], args[1], now()
  local timeout, rate = tonumber(args[2]), tonumber(args[4])
  local registration = key(root, 'worker', worker)
  touch(root, time, timeout)
  if not redis.call('ZSCORE', key(root, 'alive'), worker) then
    return { 'gone', 0 }
  end
  redis.call('ZADD', key(root, 'alive'), time + timeout, worker)
  local known = redis.call('EXISTS', registration) == 1
  if known then
    redis.call('HSET', registration, 'steps', args[3], 'beat', math.floor(time / 1000000))
    if rate > 0 then
      redis.call('HSET', registration, 'speed', relative_speed(root, rate))
    end
    redis.call('PEXPIRE', registration, math.ceil(timeout / 1000))
    redis.call('PEXPIRE', key(root, 'lease', worker), DAY_MS)
    offer(root, worker, time)
    dispatch(root, time)
  end
  local answer = { known and 'ok' or 'register', tonumber(redis.call('HGET', key(root, 'state'), 'epoch') or 0) }
  for _, item in ipairs(redis.call('HGETALL', key(root, 'lease', worker))) do
    answer[#answer + 1] = item
  end
  return answer
end

-- qs_drain: a worker takes nothing new; with `leave`, it gives back what it still runs and is gone.
--   KEYS root    ARGV worker, leave (0|1)
--   returns the number of jobs it holds, or gave back
local function drain(keys, args)
  local root, worker, time = keys[1], args[1], now()
  if args[2] == '1' then
    local given_back = remove_worker(root, worker, time, false)
    dispatch(root, time)
    return given_back
  end
  if redis.call('EXISTS', key(root, 'worker', worker)) == 1 then
    redis.call('HSET', key(root, 'worker', worker), 'state', 'draining')
  end
  redis.call('ZREM', key(root, 'free'), worker)
  return redis.call('HLEN', key(root, 'lease', worker))
end
